"""AlpacaEval's published annotations: win rates as its leaderboard computes them, with no judge and no answers.

A record has `instruction`, `output_1` by `generator_1` (the baseline), `output_2` by `generator_2` (the model), the
`annotator`, and `preference`: 1 for the baseline, 2 for the model, 0 or 1.5 for a draw, and any number between 1 and 2
for an annotator that gives probabilities (version 2). Figures are fractions, not per cent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from alignment.errors import BadInput
from eval.grading.alpaca import CONTROLLED, length_controlled
from eval.grading.pairs import WIN_RATE
from eval.suites.rows import Row, check_text
from eval.suites.samples import Sample, sample_detail

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

DISCRETE = "discrete_win_rate"
SUITE = "alpaca_eval"
OURS = "our own fit of one model alone, not AlpacaEval's: its figure is not the leaderboard's"
OURS_HARD = "our own fit of one model alone with the instructions' difficulty: its figure is not the leaderboard's"
THEIRS = "AlpacaEval's length_controlled_v1"


@dataclass(frozen=True)
class Annotation:
    """A published preference: `points` for the model from 0 to 1, None where the annotator gave none."""

    place: int
    instruction: str
    baseline: str
    answer: str
    model: str
    against: str
    judge: str
    points: float | None


def parse_annotations(rows: Sequence[Row], file: str) -> list[Annotation]:
    """The annotations in records, in their order; raises `BadInput` that names a record of another form.

    `place` counts a model's own annotations from 0: AlpacaEval looks up an instruction's difficulty by it.
    """
    given: list[Annotation] = []
    places: Counter[str] = Counter()
    for row, record in rows:
        one = _parse(record, file, row)
        given.append(replace(one, place=places[one.model]))
        places[one.model] += 1
    return given


def _parse(record: dict[str, object], file: str, row: int) -> Annotation:
    texts: dict[str, str] = {}
    for name in ("instruction", "output_1", "output_2", "generator_1", "generator_2"):
        value = record.get(name)
        if not isinstance(value, str):
            raise BadInput("not an AlpacaEval annotation: expected a text", file=file, row=row, field=name)
        texts[name] = value
    check_text(texts, file, row)
    if "preference" not in record:
        raise BadInput("not an AlpacaEval annotation: missing", file=file, row=row, field="preference")
    return Annotation(
        0,
        texts["instruction"],
        texts["output_1"],
        texts["output_2"],
        texts["generator_2"],
        texts["generator_1"],
        str(record.get("annotator") or ""),
        _points(record["preference"], file, row),
    )


def _points(preference: object, file: str, row: int) -> float | None:
    if preference is None:
        return None
    if isinstance(preference, bool) or not isinstance(preference, int | float):
        raise BadInput("expected a number from 1 to 2, or 0", file=file, row=row, field="preference")
    if math.isnan(preference):
        return None
    if preference == 0:
        return 0.5
    if not 1 <= preference <= 2:
        raise BadInput(f"{preference:g}: expected a number from 1 to 2, or 0", file=file, row=row, field="preference")
    return float(preference) - 1.0


def annotation_samples(
    given: Sequence[Annotation], difficulty: Difficulty | None
) -> tuple[list[Sample], dict[str, str]]:
    """A model's samples of the plain, the discrete and the length-controlled win rate, and by metric how it was
    computed, where there are several ways."""
    measured = [one for one in given if one.points is not None]
    points = [one.points for one in measured if one.points is not None]
    longer = [len(one.baseline) - len(one.answer) for one in measured]
    values: dict[str, dict[int, float]] = {
        WIN_RATE: {one.place: value for one, value in zip(measured, points, strict=True)},
        DISCRETE: {one.place: _rounded(value) for one, value in zip(measured, points, strict=True)},
    }
    method = {}
    if measured:
        places = [one.place for one in measured]
        if difficulty is None:
            controlled, method[CONTROLLED] = length_controlled(points, longer).values, OURS
        elif difficulty.gamed is None:
            hard = difficulty.of(places)
            controlled, method[CONTROLLED] = length_controlled(points, longer, hard).values, OURS_HARD
        else:
            controlled = published_length_controlled(points, longer, difficulty.of(places), difficulty.gamed)
            method[CONTROLLED] = THEIRS
        values[CONTROLLED] = dict(zip(places, controlled, strict=True))
    samples = []
    for metric, of in values.items():
        for one in given:
            about = sample_detail(
                baseline=one.baseline, length=len(one.answer), baseline_length=len(one.baseline), judge=one.judge
            )
            samples.append(Sample(SUITE, str(one.place), str(one.place), metric, of.get(one.place), one.answer, about))
    return samples, method


def _rounded(points: float) -> float:
    """The preference without its probability. AlpacaEval rounds half to even, but a draw stays a draw."""
    return points if points == 0.5 else float(points > 0.5)


# The published length-controlled win rate (Dubois et al. 2024; `length_controlled_v1` of alpaca_eval).
#
# The regression is the one in `alpaca.py`. It is fitted to the model's annotations together with those of the baseline
# prompted to be verbose and to be concise ("gamed"), which have a constant of their own and count 0.2 / 2 each, with
# an L1 penalty chosen by cross-validation over 5 folds. `df_gamed.csv` of the authors' data set on the hub has the
# gamed annotations and the difficulty of every instruction.

GAMED_WEIGHT = 0.2 / 2
FOLDS, PENALTIES, SEED = 5, 10, 123
"""As scikit-learn's LogisticRegressionCV by default: ten penalties from 1e-4 to 1e4."""


@dataclass(frozen=True)
class Gamed:
    """Annotations of the gamed baselines: preferences from 0 to 1, and scaled lengths, as their file has them."""

    preferences: list[float]
    lengths: list[float]
    difficulty: list[float]


@dataclass(frozen=True)
class Difficulty:
    """The difficulty of every instruction by its place in AlpacaEval's data, and the gamed annotations if given."""

    values: dict[int, float]
    gamed: Gamed | None
    file: str

    def of(self, places: Sequence[int]) -> list[float]:
        """Raises `BadInput` for an instruction without a difficulty."""
        lacking = [place for place in places if place not in self.values]
        if lacking:
            raise BadInput(f"no difficulty of instruction {lacking[0]}", file=self.file, field="index")
        return [self.values[place] for place in places]


def parse_difficulty(rows: Sequence[Row], file: str) -> Difficulty:
    """A file with `index` and `instruction_difficulty`; AlpacaEval's `df_gamed.csv` has gamed annotations too."""
    values: dict[int, float] = {}
    gamed: list[tuple[float, float, float]] = []
    for row, record in rows:
        index = record.get("index", next(iter(record.values()), None))  # pandas writes an index without a name
        numbers = [_number(record.get(name)) for name in ("preference", "std_delta_len", "instruction_difficulty")]
        place, hard = _number(index), numbers[2]
        if place is None or hard is None:
            problem = "not a file of difficulties: expected a number"
            raise BadInput(
                problem, file=file, row=row, field="instruction_difficulty" if place is not None else "index"
            )
        values.setdefault(int(place), hard)
        if numbers[0] is not None and numbers[1] is not None:
            gamed.append((numbers[0], numbers[1], hard))
    if not values:
        raise BadInput("no difficulties", file=file)
    whole = Gamed(*(list(column) for column in zip(*gamed, strict=True))) if gamed else None
    return Difficulty(values, whole, file)


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def published_length_controlled(
    points: Sequence[float], longer: Sequence[int], difficulty: Sequence[float], gamed: Gamed
) -> list[float]:
    """The predicted preference of every item if both answers had the same length; their mean is the win rate."""
    import numpy as np

    delta = np.asarray(longer, dtype=float)
    own = np.stack([np.tanh(delta / delta.std(ddof=1)), np.asarray(difficulty), np.ones_like(delta)], axis=1)
    others = np.stack([np.tanh(gamed.lengths), gamed.difficulty, np.zeros(len(gamed.lengths))], axis=1)
    rows, targets = np.concatenate([others, own]), np.concatenate([gamed.preferences, points])
    weights = np.concatenate([np.full(len(others), GAMED_WEIGHT), np.ones(len(own))])
    fit = _cross_validated(rows, targets, weights)
    equal = own * np.asarray([0.0, 1.0, 1.0])
    return [float(value) for value in 1 / (1 + np.exp(-(equal @ fit)))]


def _cross_validated(rows: Vector, targets: Vector, weights: Vector) -> Vector:
    """The coefficients at the penalty with the least log-loss on held-out folds.

    A target between 0 and 1 is two rows, one of each class, weighted by its probability; both are in the same fold.
    """
    import numpy as np
    from sklearn.model_selection import GroupKFold

    twice, both = np.concatenate([rows, rows]), np.concatenate([targets, targets])
    classes = np.repeat([1, 0], len(rows))
    counted = np.concatenate([targets, 1 - targets]) * np.concatenate([weights, weights])
    tested = np.concatenate([weights, weights])
    folds = list(GroupKFold(FOLDS).split(twice, classes, np.tile(np.arange(len(rows)), 2)))
    penalties = np.logspace(-4, 4, PENALTIES)
    losses = [
        np.mean(
            [
                _log_loss(both[test], twice[test] @ _fit(twice[train], classes[train], counted[train], c), tested[test])
                for train, test in folds
            ]
        )
        for c in penalties
    ]
    return _fit(twice, classes, counted, float(penalties[int(np.argmin(losses))]))


def _fit(rows: Vector, classes: Vector, weights: Vector, c: float) -> Vector:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=SEED)
    coefficients: Vector = model.fit(rows, classes, sample_weight=weights).coef_[0]
    return coefficients


def _log_loss(targets: Vector, level: Vector, weights: Vector) -> float:
    import numpy as np

    return float(np.mean(weights * (np.logaddexp(0.0, level) - targets * level)))
