"""AlpacaEval (Li et al. 2023): the win rate against a baseline's outputs, plain and controlled for length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.grading.grading import Answered, Verdicts
from eval.grading.pairs import BASELINE, PAIR, WIN_RATE, Pairs, pair_detail, won
from eval.suites.samples import Sample
from eval.suites.suite import Item, Suite

# AlpacaEval's length-controlled win rate (Dubois et al. 2024): the win rate if both answers had the same length.
#
# The preference y for the model's answer to instruction x follows a logistic regression (their equation 2),
#
#     logit E[y] = θ + φ · tanh(Δ / sd(Δ)) + ψ · γ(x),    Δ = length of the baseline's answer − of the model's,
#
# and the controlled win rate is the mean over x of its prediction without the middle term. γ, the instruction's
# difficulty, is a field of the data, which the authors fitted over many models; without the field the term is left out.
# Here the model is fitted alone, by maximum likelihood. The published figures also use answers of models that were
# prompted to be short or long, and an L1 penalty chosen by cross-validation.

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

RIDGE = 1e-6
"""Keeps the fit finite if one side wins every time; otherwise it changes the sixth digit at most."""
MAX_STEPS, TOLERANCE = 200, 1e-12


@dataclass(frozen=True)
class Controlled:
    """The controlled win rate, and a value for each item. The mean of the values is the
    rate, and their standard error is the standard error of the rate.

    A value is the rate plus the item's influence on it (the sandwich estimator, item by item), so it may lie outside 0
    to 1. `length_effect` is φ; None if all answers differ by the same length.
    """

    rate: float
    values: list[float]
    length_effect: float | None


def length_controlled(
    preferences: Sequence[float], longer: Sequence[int], difficulty: Sequence[float] | None = None
) -> Controlled:
    """Fits the regression above. All arguments have an entry for each item.

    `preferences` are 0, 0.5 or 1 for the model's answer; `longer` is the length of the baseline's answer minus the
    model's, in characters; `difficulty` is the instruction's γ. Raises `ValueError` without items.
    """
    import numpy as np

    y, delta = np.asarray(preferences, dtype=float), np.asarray(longer, dtype=float)
    if not len(y) or len(y) != len(delta):
        raise ValueError(f"{len(y)} preferences and {len(delta)} lengths")
    columns, controlled = [np.ones_like(y)], [np.ones_like(y)]
    if difficulty is not None:
        gamma = np.asarray(difficulty, dtype=float)
        columns.append(gamma)
        controlled.append(gamma)
    spread = float(delta.std(ddof=1)) if len(y) > 1 else 0.0
    if spread > 0:
        columns.append(np.tanh(delta / spread))
        controlled.append(np.zeros_like(y))
    seen, level = np.stack(columns, axis=1), np.stack(controlled, axis=1)
    weights = fit_logistic(seen, y)
    predicted = _sigmoid(level @ weights)
    rate = float(predicted.mean())
    fitted = _sigmoid(seen @ weights)
    curvature = (seen * (fitted * (1 - fitted))[:, None]).T @ seen + RIDGE * np.eye(len(weights))
    slope = (level * (predicted * (1 - predicted))[:, None]).mean(axis=0)
    moves = len(y) * ((y - fitted)[:, None] * seen) @ np.linalg.solve(curvature, slope)
    values = predicted + (moves - moves.mean())
    return Controlled(rate, [float(value) for value in values], float(weights[-1]) if spread > 0 else None)


def fit_logistic(rows: Vector, targets: Vector) -> Vector:
    """Coefficients that maximise the likelihood of targets in 0 to 1, by Newton's method with halved steps."""
    import numpy as np

    weights = np.zeros(rows.shape[1])
    loss = _loss(rows, targets, weights)
    for _ in range(MAX_STEPS):
        fitted = _sigmoid(rows @ weights)
        gradient = rows.T @ (targets - fitted) - RIDGE * weights
        curvature = (rows * (fitted * (1 - fitted))[:, None]).T @ rows + RIDGE * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        while (lower := _loss(rows, targets, weights + step)) > loss and np.abs(step).max() > TOLERANCE:
            step = step / 2
        weights, loss = weights + step, lower
        if np.abs(step).max() <= TOLERANCE:
            break
    return weights


def _loss(rows: Vector, targets: Vector, weights: Vector) -> float:
    import numpy as np

    level = rows @ weights
    return float((np.logaddexp(0.0, level) - targets * level).sum() + RIDGE / 2 * (weights @ weights))


def _sigmoid(level: Vector) -> Vector:
    import numpy as np

    return np.asarray(np.exp(-np.logaddexp(0.0, -level)), dtype=float)


CONTROLLED = "length_controlled_win_rate"
DIFFICULTY = "instruction_difficulty"


class Alpaca(Pairs):
    """Each pair is judged in both orders; the published annotators draw one order. Lengths are in characters."""

    metrics = (WIN_RATE, CONTROLLED)
    prompts = (PAIR,)
    reference = PAIR

    def samples(self, suite: Suite, answered: Answered, verdicts: Verdicts) -> list[Sample]:
        """The plain and the length-controlled win rate, a sample of each for every item."""
        points = {item.id: won(verdicts, item, 1) for item, _ in answered}
        judged = [(item, response.turns[0]) for item, response in answered if points[item.id] is not None]
        values: dict[str, float] = {}
        if judged:
            preferences = [value for item, _ in judged if (value := points[item.id]) is not None]
            longer = [len(item.fields[BASELINE][0]) - len(answer) for item, answer in judged]
            controlled = length_controlled(preferences, longer, _difficulty([item for item, _ in judged]))
            values = dict(zip((item.id for item, _ in judged), controlled.values, strict=True))
        samples = []
        for metric, of in ((WIN_RATE, points), (CONTROLLED, values)):
            for item, response in answered:
                answer = response.turns[0]
                about = pair_detail(
                    verdicts, item, 1, length=len(answer), baseline_length=len(item.fields[BASELINE][0])
                )
                samples.append(Sample(suite.name, item.id, item.id, metric, of.get(item.id), answer, about))
        return samples


def _difficulty(items: list[Item]) -> list[float] | None:
    """The items' difficulties; None unless every item has one."""
    given = [item.fields.get(DIFFICULTY) for item in items]
    numbers = [float(value) for value in given if isinstance(value, int | float) and not isinstance(value, bool)]
    return numbers if len(numbers) == len(items) else None


ALPACA = Alpaca()
