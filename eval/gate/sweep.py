"""The winner of a sweep: picked on one half of a suite's items, confirmed on the other.

The best of several points looks better than it is on the items that it was picked by (the winner's curse). So a hash of
an item's cluster puts it into one of two halves. One half picks; on the other, which had no say, every point is
compared with the baseline, and the p-values are corrected for the number of points by Holm's method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field

from alignment.errors import BadInput
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.stage import Request
from alignment.store import Artifact, Store, Summary
from eval.gate.compare import bound_of, width_of
from eval.gate.metrics import headline, unit_of
from eval.gate.requirement import ALPHA, Against, Check
from eval.gate.scores import SuiteScores, WrongEvidence, measured_ids, not_comparable, read_scores
from eval.statistics import Interval, holm, p_above, paired_interval
from eval.suites.samples import Sample

SWEEP_CHECK = "sweep"
ALONE = "the policy alone"
"""A candidate without settings: nothing is averaged with the policy."""
AVERAGED = {"sft": "{} of the SFT checkpoint", "champions": "the last champions, at most {}"}
"""What a candidate of `soups` averages with the policy, in words."""


class SweptPoint(BaseModel):
    """One point: what it was trained with, its policy, and the policy's scores by suite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict[str, float]
    policy: Artifact
    scores: dict[str, Artifact]


class SweepRequest(Request):
    """The points by name, in the recipe's order, and the baseline that all are compared with. `metric` is
    `suite/metric`."""

    sft: Artifact
    sft_scores: dict[str, Artifact]
    points: dict[str, SweptPoint]
    metric: str


class Half(BaseModel):
    """Point minus baseline on one half of the items: `n` pairs, and the ends of the 95 % interval where it is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    difference: float
    low: float | None = None
    high: float | None = None


class PointResult(BaseModel):
    """`p_value` is one-sided, of the confirming half; `corrected` is the same by Holm's method over all points."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict[str, float]
    picking: Half
    confirming: Half
    p_value: float | None = None
    corrected: float | None = None
    means: dict[str, float] = Field(default_factory=dict)
    """Metric (`suite/metric`) to the mean over all items, for the reader: nothing is decided by it."""


class Choice(BaseModel):
    """What came of a sweep. `width` is that of the metric's scale."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    width: float | None
    points: dict[str, PointResult]
    picked: str
    confirmed: bool

    @property
    def called(self) -> str:
        """What the points are: of a sweep, or averages with a policy."""
        return "points" if all(point.settings for point in self.points.values()) else "candidates"

    @property
    def sentence(self) -> str:
        """What was picked, and whether it was confirmed."""
        point, unit = self.points[self.picked], unit_of(self.width)
        ends = [unit.format(end, "+") for end in (point.confirming.low, point.confirming.high) if end is not None]
        interval = f" (95 % interval {' to '.join(ends)})" if ends else ""
        p_value = point.corrected
        corrected = "unknown" if p_value is None else "below 0.001" if p_value < 0.001 else f"{p_value:.3f}"
        above = f"{unit.format(point.confirming.difference, '+')} {unit.name}"
        return (
            f"{described(point.settings)} was the best of {len(self.points)} {self.called} on {point.picking.n} items;"
            f" on {point.confirming.n} others it is {above} above the start{interval}, one-sided p {corrected} after"
            f" the correction for all {self.called}"
        )


class SweepSummary(Choice, Summary):
    """What `sweep_report` says."""


def described(settings: Mapping[str, float]) -> str:
    """A point's settings in words."""
    from alignment.methods.method import short

    if not settings:
        return ALONE
    return ", ".join(AVERAGED.get(name, f"{name} {{}}").format(short(value)) for name, value in settings.items())


def picks(cluster: str) -> bool:
    """Whether the items of a cluster are in the half that picks; whatever the suite and the other items are."""
    return hashlib.blake2b(f"sweep {cluster}".encode(), digest_size=1).digest()[0] % 2 == 0


def choose(
    baseline: Sequence[Sample], points: Mapping[str, Sequence[Sample]], settings: Mapping[str, dict[str, float]]
) -> tuple[dict[str, PointResult], str, bool]:
    """Every point's result on both halves, the point that was picked, and whether it was confirmed.

    The samples are of one metric. Of points that are equally good the first is picked. Raises `BadInput` where a half
    has fewer than two clusters that a point and the baseline were both measured on.
    """
    halves = {
        name: {which: _difference(baseline, samples, which) for which in (True, False)}
        for name, samples in points.items()
    }
    p_values = {name: p_above(half[False], 0.0) for name, half in halves.items()}
    corrected = holm({name: p_value for name, p_value in p_values.items() if p_value is not None})
    picked = max(points, key=lambda name: halves[name][True].mean.value)  # the first of several
    results = {
        name: PointResult(
            settings=settings[name],
            picking=_half(half[True]),
            confirming=_half(half[False]),
            p_value=p_values[name],
            corrected=corrected.get(name),
        )
        for name, half in halves.items()
    }
    return results, picked, corrected.get(picked, 1.0) < ALPHA


def _half(interval: Interval) -> Half:
    return Half(n=interval.mean.n, difference=interval.mean.value, low=interval.low, high=interval.high)


def _difference(baseline: Sequence[Sample], candidate: Sequence[Sample], which: bool) -> Interval:
    """The paired difference on the half that picks (True), or on the other."""
    before = {sample.id: sample.value for sample in baseline if sample.value is not None}
    pairs = [
        (sample, sample.value, other)
        for sample in candidate
        if sample.value is not None and picks(sample.cluster) is which and (other := before.get(sample.id)) is not None
    ]
    if len({sample.cluster for sample, _, _ in pairs}) < 2:
        raise BadInput("a sweep needs items to pick a point by and others to confirm it: raise the suite's limit")
    first = pairs[0][0]
    width = width_of(first.suite, first.metric, [value for _, *both in pairs for value in both])
    return paired_interval(
        [value - other for _, value, other in pairs],
        [sample.cluster for sample, _, _ in pairs],
        bound_of(first.suite, first.metric, width),
    )


def check_of(choice: Choice, against: Against) -> Check:
    """What the gate says of a sweep's winner: it passes if it was confirmed, and nothing is known of it otherwise."""
    return Check.of(
        SWEEP_CHECK,
        against,
        "pass" if choice.confirmed else "inconclusive",
        f"confirmed on the items that did not pick it, by {choice.metric}",
        choice.sentence,
    )


def sweep_request(store: Store, sweep: Artifact) -> SweepRequest:
    """The request of a sweep's report."""
    return SweepRequest.model_validate_json(store.read(sweep, REQUEST_FILE))


def confirming(scores: dict[str, SuiteScores], choice: Choice | None) -> dict[str, SuiteScores]:
    """The scores without the items that picked the policy; all of them without a sweep."""
    if choice is None or (suite := choice.metric.partition("/")[0]) not in scores:
        return scores
    samples = [sample for sample in scores[suite].samples if not picks(sample.cluster)]
    return scores | {suite: replace(scores[suite], samples=samples)}


def read_choice(store: Store, request: SweepRequest) -> Choice:
    """The choice among a sweep's points, from their pinned scores, each traced to the policy that was scored."""
    suite, _, metric = request.metric.partition("/")

    def samples_of(scores: dict[str, SuiteScores]) -> list[Sample]:
        return [sample for sample in scores[suite].samples if sample.metric == metric]

    sides = {name: read_scores(store, point.scores, point.policy) for name, point in request.points.items()}
    baseline = read_scores(store, request.sft_scores, request.sft)
    if reasons := [reason for scores in sides.values() if (reason := not_comparable(baseline[suite], scores[suite]))]:
        raise WrongEvidence(f"the points of the sweep cannot be compared by {request.metric}: {reasons[0]}")
    samples = {name: samples_of(scores) for name, scores in sides.items()}
    settings = {name: point.settings for name, point in request.points.items()}
    results, picked, confirmed = choose(samples_of(baseline), samples, settings)
    means = {name: _means(scores) for name, scores in sides.items()}
    points = {name: result.model_copy(update={"means": means[name]}) for name, result in results.items()}
    values = [sample.value for each in samples.values() for sample in each if sample.value is not None]
    return Choice(
        metric=request.metric,
        width=width_of(suite, metric, values),
        points=points,
        picked=picked,
        confirmed=confirmed,
    )


def _means(scores: Mapping[str, SuiteScores]) -> dict[str, float]:
    """The mean of each suite's main metric over all items that have a value."""
    means = {}
    for suite, one in scores.items():
        measured = measured_ids(one.samples)
        if measured:
            main = headline(suite, measured)
            values = [each.value for each in one.samples if each.metric == main and each.value is not None]
            means[f"{suite}/{main}"] = sum(values) / len(values)
    return means


def winner(store: Store, sweep: Artifact, policy: Artifact) -> Choice:
    """The choice that a sweep's report stands for, computed again; raises `WrongEvidence` if it picked another policy
    than this."""
    request = sweep_request(store, sweep)
    choice = read_choice(store, request)
    picked = request.points[choice.picked].policy
    if picked.digest != policy.digest:
        raise WrongEvidence(f"the sweep picked policy {picked.digest[:12]}, not {policy.digest[:12]}")
    return choice
