"""Two models on the same items: paired differences per metric, over the items that both were measured on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from alignment.errors import BadInput
from eval.statistics import (
    ComparisonVerdict,
    Interval,
    Mean,
    Shares,
    bootstrap_interval,
    mcnemar_exact,
    minimum_detectable_effect,
    paired_interval,
    ratio_interval,
    verdict,
)
from eval.suites import SUITES
from eval.suites.samples import Sample

# Scales: the range of a metric, and the difference on it that counts as no loss.

OUTCOMES = frozenset({0.0, 0.5, 1.0})
"""Values of wrong, tied and right items. A metric with no other values has a scale from 0 to 1."""
FRACTIONS = frozenset(
    {"acc", "acc_norm", "acc_bytes", "exact_match", "em", "f1", "mc1", "mc2", "ended", "distinct_2", "distinct_4"}
)
"""Metrics of lm-eval, by name before the comma, and of answers (eval/gate/bounded.py) whose values are fractions."""
MARGIN_SHARE = 20
"""A default margin is the scale's width over this."""


def width_of(suite: str, metric: str, values: Iterable[float]) -> float | None:
    """The width of a metric's scale; None for a metric without known bounds (a length, a margin)."""
    named = width_by_name(suite, metric)
    return 1.0 if named is None and OUTCOMES.issuperset(values) else named


def width_by_name(suite: str, metric: str) -> float | None:
    """The width of a metric's scale as its name tells it, before anything is measured; None where it does not."""
    if suite in SUITES and metric in SUITES[suite].metrics:
        low, high = SUITES[suite].scale_of(metric)
        return high - low
    return 1.0 if metric.partition(",")[0] in FRACTIONS else None


def bound_of(suite: str, metric: str, width: float | None) -> float | None:
    """The largest difference between two item values of a metric: its width, or None for linearised values."""
    return None if suite in SUITES and metric in SUITES[suite].linearised else width


def default_margin(width: float) -> float:
    """The margin of a metric for which the recipe names none: a twentieth of the scale's width.

    That is 0.05 of a fraction and 0.45 of a rating from 1 to 10. It is about the smallest loss that can be excluded
    with 250 right-or-wrong items of which 2 % are gained and 2 % lost, or with MT-Bench's 80 questions if none changed.
    """
    return width / MARGIN_SHARE


def margin_of(width: float | None) -> float:
    """The margin of a metric of which only the width of its scale is known; 0 for a scale without bounds."""
    return 0.0 if width is None else default_margin(width)


def describe_scale(suite: str) -> str:
    """A suite's scale in words."""
    low, high = SUITES[suite].scale
    return f"a scale from {low:g} to {high:g}"


NAMED_ITEMS = 20  # most ids that a comparison lists of the items it leaves out


class OwnMean(BaseModel):
    """The mean over all `n` values of one side, whatever the other side has; `asked` counts the items it was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    n: int
    asked: int


class MeanRatio(BaseModel):
    """The candidate's mean over the baseline's, over paired values; the ends of its 95 % interval are None if every
    item has the same ratio, or if there are fewer than two clusters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float | None
    high: float | None


class MetricComparison(BaseModel):
    """Candidate minus baseline on one metric.

    `n` counts paired values, in `clusters` clusters; `baseline` and `candidate` are means over these pairs. `missing`
    counts values without a pair, and `missing_ids` names the first of them: `missing_candidate` values exist only on
    the baseline's side, `missing_baseline` only on the candidate's, and the others on neither. `own_of` gives a side's
    mean over all its own values. `baseline_own` and `candidate_own` hold it if some values have no pair; otherwise they
    are left out of the JSON, so that a complete comparison keeps its digest.

    `ci95` and `p_value` are Student's t on the cluster-robust `stderr`. If too few clusters differ for that, they are
    Tango's score interval and test on `shares` (eval/statistics/paired.py). They and `minimum_detectable_effect` are
    None if there are fewer than two clusters, or if no item differs and the items' values have no bound (`bound_of`).
    `bootstrap_ci95` is the paired bootstrap over clusters (None if nothing varies). `p_mcnemar` is the exact McNemar
    test (None unless every value is 0 or 1 and every cluster has one value). `ratio` is given where it was asked for,
    and left out of the JSON otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    clusters: int
    baseline: float
    candidate: float
    difference: float
    stderr: float | None
    ci95: tuple[float, float] | None
    p_value: float | None
    minimum_detectable_effect: float | None
    bootstrap_ci95: tuple[float, float] | None = None
    p_mcnemar: float | None = None
    gained: int
    lost: int
    missing: int
    missing_ids: list[str]
    missing_baseline: int = 0
    missing_candidate: int = 0
    baseline_own: OwnMean | None = None
    candidate_own: OwnMean | None = None
    width: float | None = None
    shares: Shares | None = None
    verdict: ComparisonVerdict
    ratio: MeanRatio | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        given = handler(self)
        absent = {name for name in ("baseline_own", "candidate_own", "ratio") if given[name] is None}
        return {name: value for name, value in given.items() if name not in absent}

    def own_of(self, side: Literal["baseline", "candidate"]) -> OwnMean:
        """A side's mean over all its own values, with or without a pair."""
        own = self.baseline_own if side == "baseline" else self.candidate_own
        return own or OwnMean(mean=self.baseline if side == "baseline" else self.candidate, n=self.n, asked=self.n)

    def difference_interval(self) -> Interval:
        """The difference as an `Interval`, for the functions of `eval.statistics`."""
        low, high = self.ci95 if self.ci95 is not None else (None, None)
        return Interval(Mean(self.difference, self.stderr, self.n, self.clusters), low, high, self.p_value, self.shares)


def compare_samples(
    baseline: Sequence[Sample],
    candidate: Sequence[Sample],
    metric: str | None = None,
    margin: float | None = 0.0,
    bound: float | None = None,
    ratio: bool = False,
) -> dict[str, MetricComparison]:
    """Compares every metric that both sides have (or only `metric`), in the candidate's order.

    Differences within ±`margin` are `equivalent`; None takes a twentieth of each metric's scale. `bound` is the largest
    possible difference between an item's two values, if that is less than the scale's width. With `ratio` the ratio of
    the means is given too. Items that only one side was measured on are left out and counted. Raises `BadInput` for a
    metric that a side lacks, a repeated id, an id in two clusters, and sides that share no measured item.
    """
    sides = {"baseline": _by_metric(baseline, "baseline"), "candidate": _by_metric(candidate, "candidate")}
    _same_suite(baseline, candidate)
    metrics = [name for name in sides["candidate"] if name in sides["baseline"]]
    if metric is not None:
        for side, table in sides.items():
            if metric not in table:
                raise BadInput(f"the {side} has no metric '{metric}'; it has {', '.join(table) or 'none'}")
        metrics = [metric]
    if not metrics:
        raise BadInput("baseline and candidate have no metric in common")
    baselines, candidates = sides["baseline"], sides["candidate"]
    return {name: _compare(name, baselines[name], candidates[name], margin, bound, ratio) for name in metrics}


def _by_metric(samples: Iterable[Sample], side: str) -> dict[str, dict[str, Sample]]:
    table: dict[str, dict[str, Sample]] = {}
    for sample in samples:
        rows = table.setdefault(sample.metric, {})
        if sample.id in rows:
            raise BadInput(f"the {side} has item {sample.id} twice in {sample.metric}")
        rows[sample.id] = sample
    return table


def _same_suite(baseline: Sequence[Sample], candidate: Sequence[Sample]) -> None:
    suites = sorted({sample.suite for sample in (*baseline, *candidate)})
    if len(suites) > 1:
        raise BadInput(f"these samples are of different suites: {', '.join(suites)}")


def _compare(
    metric: str,
    baseline: dict[str, Sample],
    candidate: dict[str, Sample],
    margin: float | None,
    bound: float | None,
    ratio: bool,
) -> MetricComparison:
    ids = [name for name, sample in baseline.items() if name in candidate and sample.value is not None]
    pairs = [(baseline[name], candidate[name]) for name in ids if candidate[name].value is not None]
    for before, after in pairs:
        if before.cluster != after.cluster:
            raise BadInput(f"item {before.id} of {metric} is in cluster {before.cluster} and {after.cluster}")
    if not pairs:
        raise BadInput(f"no item of {metric} was measured on both sides")
    before_values = [float(before.value) for before, _ in pairs if before.value is not None]
    after_values = [float(after.value) for _, after in pairs if after.value is not None]
    differences = [after - before for before, after in zip(before_values, after_values, strict=True)]
    clusters = [before.cluster for before, _ in pairs]
    width = width_of(pairs[0][0].suite, metric, (*before_values, *after_values))
    bound = bound_of(pairs[0][0].suite, metric, width) if bound is None else bound
    difference = paired_interval(differences, clusters, bound)
    if margin is None:
        margin = margin_of(width)
    gained, lost = sum(value > 0 for value in differences), sum(value < 0 for value in differences)
    paired = {before.id for before, _ in pairs}
    missing = [name for name in dict.fromkeys((*baseline, *candidate)) if name not in paired]
    binary = {0.0, 1.0}.issuperset((*before_values, *after_values)) and difference.mean.clusters == len(pairs)
    return MetricComparison(
        n=len(pairs),
        clusters=difference.mean.clusters,
        baseline=sum(before_values) / len(pairs),
        candidate=sum(after_values) / len(pairs),
        difference=difference.mean.value,
        stderr=difference.mean.stderr,
        ci95=None if difference.low is None or difference.high is None else (difference.low, difference.high),
        p_value=difference.p_value,
        minimum_detectable_effect=minimum_detectable_effect(difference),
        bootstrap_ci95=bootstrap_interval(differences, clusters),
        p_mcnemar=mcnemar_exact(gained, lost) if binary else None,
        gained=gained,
        lost=lost,
        missing=len(missing),
        missing_ids=missing[:NAMED_ITEMS],
        missing_baseline=_measured_in(candidate, missing),
        missing_candidate=_measured_in(baseline, missing),
        baseline_own=_own(baseline, len(pairs) + len(missing)) if missing else None,
        candidate_own=_own(candidate, len(pairs) + len(missing)) if missing else None,
        width=width,
        shares=difference.shares,
        verdict=verdict(difference, margin),
        ratio=_ratio(before_values, after_values, clusters) if ratio else None,
    )


def _ratio(before: Sequence[float], after: Sequence[float], clusters: Sequence[str]) -> MeanRatio | None:
    """The ratio of the means; None over a mean that is not above zero."""
    if sum(before) <= 0:
        return None
    interval = ratio_interval(after, before, clusters)
    return MeanRatio(value=interval.mean.value, low=interval.low, high=interval.high)


def _measured_in(side: dict[str, Sample], ids: Iterable[str]) -> int:
    return sum(name in side and side[name].value is not None for name in ids)


def _own(side: dict[str, Sample], asked: int) -> OwnMean:
    """The mean of a side's values. An item that either side names was asked of both sides."""
    values = [sample.value for sample in side.values() if sample.value is not None]
    return OwnMean(mean=sum(values) / len(values), n=len(values), asked=asked)
