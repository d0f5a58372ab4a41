"""A judge succeeds another: what both say of the same stored answers, and whether past verdicts would stand.

Decisions outlive their judge. The old judge's judgments are stored, with the exact text that it was shown, so the old
judge need not answer any more: the new one is asked the same questions. One model's scores by one judge are never
compared with another model's by the other. Each judge compares two models by its own scores. The two verdicts are set
side by side, and so are the two differences: two judges of the same worth often have different verdicts by chance.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from pydantic import BaseModel, ConfigDict

from alignment.errors import BadInput
from eval.gate.compare import compare_samples, default_margin
from eval.judge.judgment import HIGHEST, LOWEST, REFUSAL_PROMPT, SAFETY_PROMPT, Judgment, Question
from eval.judge.prompts import Prompts
from eval.statistics import ComparisonVerdict, Interval, Mean, clustered_mean, paired_interval, verdict
from eval.suites.samples import Sample

ENOUGH = 10
"""Questions below which nothing is claimed of two judges."""
CLOSE = 1.0
"""Ratings that differ by at most so much count as close."""
TIE = 0.5
OPPOSITE = {"improved", "regressed"}
"""Two verdicts of which at most one is right."""

Place = tuple[str, int, int]
"""Question id, turn and game."""


@dataclass(frozen=True)
class Side:
    """The judgments of one model's answers in a suite; `name` is `sft`, `policy`, `champion`, or a model's name."""

    suite: str
    name: str
    judgments: tuple[Judgment, ...]

    def of(self, questions: Iterable[str]) -> Side:
        """The side with the judgments of these questions only."""
        kept = set(questions)
        return Side(self.suite, self.name, tuple(one for one in self.judgments if one.question_id in kept))


def sampled(sides: Sequence[Side], limit: int | None, seed: int = 0) -> list[Side]:
    """The sides with the same `limit` questions each, chosen by a hash of their ids; a larger limit keeps all of a
    smaller one's. A question's turns and games stay together, and a question that all sides have comes first."""
    if limit is None:
        return list(sides)
    named = [{one.question_id for one in side.judgments} for side in sides]

    def rank(question: str) -> tuple[int, bytes]:
        lacking = sum(question not in questions for questions in named)
        return lacking, hashlib.sha256(f"{seed}\n{question}".encode()).digest()

    chosen = sorted(set().union(*named), key=rank)[:limit]
    return [side.of(chosen) for side in sides]


def question_of(judgment: Judgment, prompts: Prompts, file: str, repeat: int = 0) -> Question:
    """The question behind a stored judgment; raises `BadInput` if the judgment does not say what was asked."""
    if not judgment.user_prompt:
        problem = "the judgment does not say what the judge was asked, so no other judge can be asked the same"
        raise BadInput(problem, file=file, row=judgment.row, field="user_prompt")
    if judgment.prompt_name not in prompts:
        problem = f"no judge prompt named '{judgment.prompt_name}': give --prompts, the file that the old judge had"
        raise BadInput(problem, file=file, row=judgment.row, field="judge")
    system = prompts[judgment.prompt_name].system
    place = judgment.question_id, judgment.turn, judgment.prompt_name
    return Question(*place, system, judgment.user_prompt, judgment.game, repeat)


class Noise(BaseModel):
    """How much of a score is the new judge and not the answer.

    `repeats` judgments of a question have the standard deviation `repeat_sd` (None without repeats), which is part of
    every interval already, because each stored score is one such draw. `flipped` is the share of pairs whose verdict
    turns with the order, by the old and by the new judge (None without pairs). `verbosity` is how many points more
    than the old judge the new one gives for a thousand more characters, with its standard error.
    """

    model_config = ConfigDict(frozen=True)

    repeats: int = 0
    repeat_sd: float | None = None
    flipped: tuple[float, float] | None = None
    verbosity: float | None = None
    verbosity_stderr: float | None = None


class PastVerdict(BaseModel):
    """Two models compared by each judge's own scores of the same answers.

    `shift` is the new judge's difference minus the old judge's, on the metric's scale, paired by turn; its 95 %
    interval is clustered by question, and None for fewer than two questions. `changed`: the verdicts differ, and either
    this interval excludes 0 or one judge says improved and the other regressed. `undecided`: the verdicts differ, and
    the two differences may be equal. `new_ci95` and `shift_ci95` are widened by the new judge's noise where that was
    asked for.
    """

    model_config = ConfigDict(frozen=True)

    baseline: str
    candidate: str
    n: int
    old_difference: float
    old_ci95: tuple[float, float] | None
    old_verdict: ComparisonVerdict
    new_difference: float
    new_ci95: tuple[float, float] | None
    new_verdict: ComparisonVerdict
    shift: float
    shift_ci95: tuple[float, float] | None
    changed: bool
    undecided: bool


class Agreement(BaseModel):
    """Two judges on one suite. `n` judgments of `questions` questions have a verdict of both.

    `agreement` is the share of equal verdicts and `close` of ratings at most one point apart (None for other
    verdicts); `correlation` is Pearson's. `offset` is new minus old, clustered by question, with its 95 % interval.
    `enough` is False below ten questions: nothing is claimed then.
    """

    model_config = ConfigDict(frozen=True)

    suite: str
    metric: str
    n: int
    questions: int
    unread_old: int
    unread_new: int
    agreement: float | None
    close: float | None
    correlation: float | None
    old: float | None
    new: float | None
    offset: float | None
    stderr: float | None
    ci95: tuple[float, float] | None
    enough: bool
    noise: Noise
    verdicts: list[PastVerdict]


Answers = Mapping[tuple[str, Place], Judgment]
"""The new judge's judgments by side and place."""


def agreement(
    sides: Sequence[Side],
    answers: Answers,
    pairs: Sequence[tuple[str, str]] | None = None,
    repeats: Mapping[tuple[str, Place], Sequence[Judgment]] | None = None,
    widen: bool = False,
) -> Agreement:
    """What both judges say of the sides of one suite, which were all judged in the same way.

    `pairs` names (baseline, candidate) of the past verdicts; by default every two sides. `repeats` has further
    judgments of the new judge by place. `widen` adds the noise to the intervals of the new judge's differences.
    """
    places = [(side.name, old, answers.get((side.name, old.place))) for side in sides for old in side.judgments]
    both = [
        (side, old, old.score, new.score)
        for side, old, new in places
        if new is not None and old.score is not None and new.score is not None
    ]
    metric, width = _metric(sides)
    differences = [new - old for _, _, old, new in both]
    clusters = [judgment.question_id for _, judgment, _, _ in both]
    offset = paired_interval(differences, clusters, width) if both else None
    enough = len(set(clusters)) >= ENOUGH
    noise = _noise(sides, answers, both, repeats or {})
    known = [side.name for side in sides]
    wanted = list(combinations(known, 2)) if pairs is None else [p for p in pairs if set(p) <= set(known)]
    tables = {side.name: _samples(side, metric, answers) for side in sides}
    lengths = {side.name: {one.place: len(one.user_prompt) for one in side.judgments} for side in sides}
    verdicts = []
    for baseline, candidate in wanted:
        longer = _mean_difference(lengths[baseline], lengths[candidate]) / 1000
        one = _past(baseline, candidate, tables, metric, width, (noise, longer) if widen else None)
        verdicts += [] if one is None else [one]
    return Agreement(
        suite=sides[0].suite,
        metric=metric,
        n=len(both),
        questions=len(set(clusters)),
        unread_old=sum(old.score is None for _, old, _ in places),
        unread_new=sum(new is not None and new.score is None for _, _, new in places),
        agreement=_share(old == new for _, _, old, new in both),
        close=_share(abs(new - old) <= CLOSE for _, _, old, new in both) if metric == "average" else None,
        correlation=_correlation([old for _, _, old, _ in both], [new for _, _, _, new in both]),
        old=statistics.fmean(old for _, _, old, _ in both) if both else None,
        new=statistics.fmean(new for _, _, _, new in both) if both else None,
        offset=None if offset is None else offset.mean.value,
        stderr=None if offset is None else offset.mean.stderr,
        ci95=None if offset is None or offset.low is None or offset.high is None else (offset.low, offset.high),
        enough=enough,
        noise=noise,
        verdicts=verdicts,
    )


def _metric(sides: Sequence[Side]) -> tuple[str, float]:
    """The metric of judgments, and the width of its scale."""
    first = next(judgment for side in sides for judgment in side.judgments)
    if first.game:
        return "win_rate", 1.0
    if first.prompt_name in (SAFETY_PROMPT, REFUSAL_PROMPT):
        return ("harmless" if first.prompt_name == SAFETY_PROMPT else "compliance"), 1.0
    return "average", HIGHEST - LOWEST


def _share(verdicts: Iterable[bool]) -> float | None:
    given = list(verdicts)
    return sum(given) / len(given) if given else None


def _correlation(old: Sequence[float], new: Sequence[float]) -> float | None:
    if len(old) < 2 or len(set(old)) < 2 or len(set(new)) < 2:
        return None
    return statistics.correlation(old, new)


def _mean_difference(baseline: Mapping[Place, int], candidate: Mapping[Place, int]) -> float:
    shared = [candidate[place] - length for place, length in baseline.items() if place in candidate]
    return statistics.fmean(shared) if shared else 0.0


def _points(games: Mapping[int, float | None]) -> float | None:
    """The value of a turn: the score of a single answer; of a pair a tie where the verdict turns with the order."""
    if 0 in games:
        return games[0]
    first, second = games.get(1), games.get(2)
    if first is None or second is None:
        return None
    return first if first == second else TIE


def _turns(judgments: Iterable[Judgment]) -> dict[tuple[str, int], dict[int, float | None]]:
    turns: dict[tuple[str, int], dict[int, float | None]] = defaultdict(dict)
    for one in judgments:
        turns[one.question_id, one.turn][one.game] = one.score
    return turns


def _samples(side: Side, metric: str, answers: Answers) -> tuple[list[Sample], list[Sample]]:
    """A side's values by the old and by the new judge, on the turns that both have read."""
    old = _turns(side.judgments)
    given = (answers.get((side.name, one.place)) for one in side.judgments)
    new = _turns(one for one in given if one is not None)
    values = {turn: (_points(games), _points(new.get(turn, {}))) for turn, games in old.items()}
    tables: tuple[list[Sample], list[Sample]] = ([], [])
    for (question, turn), by_judge in values.items():
        for table, value in zip(tables, by_judge, strict=True):
            if None not in by_judge:
                table.append(Sample(side.suite, f"{question}:{turn}", question, metric, value, ""))
    return tables


def _past(
    baseline: str,
    candidate: str,
    tables: Mapping[str, tuple[list[Sample], list[Sample]]],
    metric: str,
    width: float,
    noise: tuple[Noise, float] | None,
) -> PastVerdict | None:
    """The comparison of two sides by each judge; None if they share no turn that both judges have read."""
    shared = {one.id for one in tables[baseline][0]} & {one.id for one in tables[candidate][0]}
    if not shared:
        return None
    old, new = (
        compare_samples(tables[baseline][judge], tables[candidate][judge], metric, margin=None)[metric]
        for judge in (0, 1)
    )
    ends, judged = new.ci95, new.verdict
    shift = _shift(tables[baseline], tables[candidate], width)
    apart = None if shift.low is None or shift.high is None else (shift.low, shift.high)
    if noise is not None and apart is not None:
        apart = _widened(shift.mean, apart, *noise)
    if noise is not None and ends is not None:
        ends = _widened(new.difference_interval().mean, ends, *noise)
        widened = replace(new.difference_interval(), low=ends[0], high=ends[1])
        judged = verdict(widened, 0.0 if new.width is None else default_margin(new.width))
    differ = apart is not None and not apart[0] <= 0 <= apart[1]
    changed = old.verdict != judged and (differ or {old.verdict, judged} == OPPOSITE)
    return PastVerdict(
        baseline=baseline,
        candidate=candidate,
        n=old.n,
        old_difference=old.difference,
        old_ci95=old.ci95,
        old_verdict=old.verdict,
        new_difference=new.difference,
        new_ci95=ends,
        new_verdict=judged,
        shift=shift.mean.value,
        shift_ci95=apart,
        changed=changed,
        undecided=old.verdict != judged and not changed,
    )


def _shift(
    baseline: tuple[list[Sample], list[Sample]], candidate: tuple[list[Sample], list[Sample]], width: float
) -> Interval:
    """The difference that the new judge sees minus the one that the old judge sees, over the turns that both sides
    have. It may be up to twice the scale's `width`, but hardly ever is more than once: where few questions differ, the
    score interval takes the width, or the largest value if that is more."""
    before, after = _offsets(baseline), _offsets(candidate)
    clusters = {one.id: one.cluster for one in baseline[0] if one.id in after}
    values = [after[turn] - before[turn] for turn in clusters]
    return paired_interval(values, list(clusters.values()), max(width, *map(abs, values)))


def _offsets(by_judge: tuple[list[Sample], list[Sample]]) -> dict[str, float]:
    """The new judge's value minus the old judge's, by turn."""
    pairs = zip(*by_judge, strict=True)
    return {old.id: new.value - old.value for old, new in pairs if old.value is not None and new.value is not None}


def _widened(mean: Mean, ends: tuple[float, float], noise: Noise, longer: float) -> tuple[float, float]:
    """The interval in which a difference of the new judge, or this minus the old judge's, would lie if the new judge
    judged both sides again, and if the old judge were right about length.

    The standard error of two further draws a turn, √(2 sd² / n), is added in squares. What the judges' taste for length
    makes of the mean difference in length, |slope × Δ|, is added to both ends, because nobody knows which of them is
    right.
    """
    again = 1.96 * math.sqrt(2 / mean.n) * (noise.repeat_sd or 0.0)
    taste = abs((noise.verbosity or 0.0) * longer)
    middle, low, high = mean.value, *ends
    return middle - math.hypot(middle - low, again) - taste, middle + math.hypot(high - middle, again) + taste


def _noise(
    sides: Sequence[Side],
    answers: Answers,
    both: Sequence[tuple[str, Judgment, float, float]],
    repeats: Mapping[tuple[str, Place], Sequence[Judgment]],
) -> Noise:
    spread, count = [], 0
    for place, further in repeats.items():
        first = answers.get(place)
        scores = [one.score for one in (first, *further) if one is not None and one.score is not None]
        if len(scores) > 1:
            spread.append(statistics.variance(scores))
            count = max(count, len(scores))
    slope = _slope(
        [len(judgment.user_prompt) / 1000 for _, judgment, _, _ in both],
        [new - old for _, _, old, new in both],
        [judgment.question_id for _, judgment, _, _ in both],
    )
    old = _flipped(_turns(side.judgments) for side in sides)
    new = _flipped(
        _turns(one for place in side.judgments if (one := answers.get((side.name, place.place))) is not None)
        for side in sides
    )
    return Noise(
        repeats=count,
        repeat_sd=math.sqrt(statistics.fmean(spread)) if spread else None,
        flipped=None if old is None or new is None else (old, new),
        verbosity=None if slope is None else slope[0],
        verbosity_stderr=None if slope is None else slope[1],
    )


def _flipped(tables: Iterable[Mapping[tuple[str, int], Mapping[int, float | None]]]) -> float | None:
    return _share(
        games[1] != games[2]
        for turns in tables
        for games in turns.values()
        if games.get(1) is not None and games.get(2) is not None
    )


def _slope(x: Sequence[float], y: Sequence[float], clusters: Sequence[str]) -> tuple[float, float | None] | None:
    """The least-squares slope of y on x, with its cluster-robust standard error."""
    if len(set(clusters)) < ENOUGH or len(set(x)) < 2:
        return None
    middle, level = statistics.fmean(x), statistics.fmean(y)
    squares = math.fsum((value - middle) ** 2 for value in x)
    slope = math.fsum((a - middle) * b for a, b in zip(x, y, strict=True)) / squares
    # the slope is a mean of these parts, so its standard error is theirs
    scale = len(x) / squares
    parts = [slope + scale * (a - middle) * (b - level - slope * (a - middle)) for a, b in zip(x, y, strict=True)]
    return slope, clustered_mean(parts, clusters).stderr
