"""A requirement of the gate on a metric: the decision, and the reason in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from alignment.stages.stage import SftSummary
from alignment.store import Artifact, Store
from eval.gate.compare import MetricComparison
from eval.gate.metrics import PERCENT, unit_of
from eval.statistics import clusters_needed, holm, p_above

Outcome = Literal["pass", "fail", "inconclusive"]
Against = Literal["sft", "adopted", "base", "champion", "itself"]

ALPHA = 0.025
"""Level of the one-sided test that agrees with the rule "the lower end of the 95 % interval is above the threshold"."""
ANY_METRIC = "any metric"
OTHER_SETTINGS = "measured with other settings"
"""A reason for not comparing the scores of two checkpoints, which the old settings would remove."""
OTHER_REFERENCE = "measured with another reference or token policy"
"""A reason for not comparing held-out preferences, which are relative to where a policy started."""
NO_PAIRS = "measured on no held-out pairs"
NO_SHARED_PAIRS = "measured on other held-out pairs only"
NOT_COMPARABLE = (OTHER_REFERENCE, NO_PAIRS, NO_SHARED_PAIRS)
"""Reasons that no later run can remove."""
OVERRIDE = "promote the policy with `align promote --override` to begin anew"
REMEDY = (
    "`align run` measures it again while its weights are there; after that, change the settings back, or promote the "
    "policy with `align promote --override`"
)
BASELINE_NAMES = {
    "sft": "the SFT baseline",
    "adopted": "the adopted model",
    "base": "the base model",
    "champion": "the champion",
}
SHORT_NAMES = {
    "sft": "SFT",
    "adopted": "adopted model",
    "base": "base model",
    "champion": "champion",
    "itself": "–",
}


def baseline_at(store: Store, start: Artifact) -> Against:
    """What a policy that started from a checkpoint is compared with: its SFT checkpoint, a model that the recipe adopts
    as it is, or the base model."""
    if start.kind == "base_model":
        return "base"
    return "adopted" if SftSummary.of(store.commit_of(start)).adopted else "sft"


class Check(BaseModel):
    """The outcome of a requirement on a metric, against a baseline or for the candidate itself.

    `asked` is the requirement in words and `seen` the measurement; `reason` has both in one line. `needed` is the
    number of clusters (prompts, questions) that would decide, if more of them can decide.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    against: Against
    outcome: Outcome
    asked: str
    seen: str
    reason: str
    needed: int | None = None

    @classmethod
    def of(
        cls, metric: str, against: Against, outcome: Outcome, asked: str, seen: str, needed: int | None = None
    ) -> Check:
        """A check, with its `reason` composed of the other fields."""
        place = f" against {BASELINE_NAMES[against]}" if against in BASELINE_NAMES else ""
        reason = f"{metric}{place}: {seen}; asked: {asked}"
        return cls(
            metric=metric, against=against, outcome=outcome, asked=asked, seen=seen, reason=reason, needed=needed
        )


def above(
    metric: str,
    against: Against,
    comparison: MetricComparison | None,
    threshold: float | None,
    claims: Mapping[str, float] | None = None,
    left_out: str | None = None,
) -> Check:
    """Whether the difference is known to be above the threshold; inconclusive if the threshold is None.

    `left_out` is the reason why the suite was not compared. `claims` are the corrected p-values of all claims that are
    made together, by metric, with this one; without them the requirement is tested alone.
    """
    asked = "a margin" if threshold is None else _asked(comparison, threshold)

    def check(outcome: Outcome, seen: str, needed: int | None = None) -> Check:
        return Check.of(metric, against, outcome, asked, seen, needed)

    if comparison is None and left_out == OTHER_SETTINGS:
        return check("inconclusive", f"{BASELINE_NAMES[against]} was {OTHER_SETTINGS}; {REMEDY}")
    if comparison is None and left_out in NOT_COMPARABLE:
        return check("inconclusive", f"{BASELINE_NAMES[against]} was {left_out}; {OVERRIDE}")
    if comparison is None:
        return check("inconclusive", f"not measured on both the candidate and {BASELINE_NAMES[against]}")
    if threshold is None:
        return check("inconclusive", "this metric's scale has no end, so champion_margin has to be given")
    if comparison.ci95 is None:
        return check("inconclusive", f"no interval from {items(comparison)}: {_no_interval(comparison)}")
    low, high = comparison.ci95
    unit = unit_of(comparison.width)
    seen = (
        f"{unit.format(comparison.difference, '+')} {unit.name} "
        f"(95 % interval {unit.format(low, '+')} to {unit.format(high, '+')}, {items(comparison)})"
    )
    if high <= threshold:
        return check("fail", seen)
    if low > threshold:
        together = (
            f"; corrected for {len(claims)} claims p = {claims[metric]:.3g}" if claims and len(claims) > 1 else ""
        )
        holds = not claims or claims[metric] < ALPHA
        return check("pass" if holds else "inconclusive", seen + together)
    needed = clusters_needed(comparison.difference_interval(), threshold)
    more = "" if needed is None or needed <= comparison.clusters else f"; about {needed} items would tell"
    return check("inconclusive", seen + more, needed)


def _no_interval(comparison: MetricComparison) -> str:
    if comparison.clusters < 2:
        return "one cluster alone has no spread"
    return "all differ by the same, and this metric's values have no bound that would limit what was not seen"


def _asked(comparison: MetricComparison | None, threshold: float) -> str:
    if comparison is None:
        return f"more than {threshold:+.4g}".replace("-", "−")
    return f"more than {unit_of(comparison.width).format(threshold, '+')}"


def items(comparison: MetricComparison) -> str:
    """The numbers of values, of clusters and of values left out, in words; counts separately what one side alone
    lacks."""
    clusters = "" if comparison.clusters == comparison.n else f" in {comparison.clusters} clusters"
    if not comparison.missing:
        return f"n = {comparison.n}{clusters}"
    sides = [
        f"{count} lacking in the {side} alone"
        for side, count in (("candidate", comparison.missing_candidate), ("baseline", comparison.missing_baseline))
        if count
    ]
    lacking = f" ({', '.join(sides)})" if sides else ""
    return f"n = {comparison.n}{clusters}, {comparison.missing} left out{lacking}"


def at_least(metric: str, comparison: MetricComparison | None, threshold: float, max_missing: float) -> Check:
    """Whether the candidate's mean over all its own values reaches the threshold.

    Inconclusive if more than the fraction `max_missing` of the items that it was asked have no value.
    """
    return _own_bound(metric, comparison, threshold, max_missing, "at least")


def at_most(metric: str, comparison: MetricComparison | None, threshold: float, max_missing: float) -> Check:
    """Whether the candidate's mean over all its own values is no more than the threshold; otherwise as `at_least`."""
    return _own_bound(metric, comparison, threshold, max_missing, "at most")


def _own_bound(
    metric: str, comparison: MetricComparison | None, threshold: float, max_missing: float, words: str
) -> Check:
    if comparison is None:
        return Check.of(metric, "itself", "inconclusive", f"{words} {threshold:.4g}", "not measured")
    own, unit = comparison.own_of("candidate"), unit_of(comparison.width)
    sign = " %" if comparison.width == 1.0 else ""
    asked = f"{words} {unit.format(threshold)}{sign}"
    seen = f"{unit.format(own.mean)}{sign}, {items(comparison) if own.n == comparison.n else f'n = {own.n}'}"
    lacking = _lacking("the candidate", own.asked - own.n, own.asked, "it was asked for", max_missing)
    if lacking is not None:
        return Check.of(metric, "itself", "inconclusive", asked, f"{seen}; {lacking}")
    holds = own.mean >= threshold if words == "at least" else own.mean <= threshold
    return Check.of(metric, "itself", "pass" if holds else "fail", asked, seen)


def max_ratio(metric: str, comparison: MetricComparison | None, most: float, baseline: Against = "sft") -> Check:
    """Whether the candidate's mean is at most `most` times the baseline's, by the ratio's 95 % interval.

    Where every item has the same ratio there is no interval, and the ratio itself decides: two models that answer alike
    pass.
    """
    asked = f"at most {most:.4g} times"

    def check(outcome: Outcome, seen: str) -> Check:
        return Check.of(metric, baseline, outcome, asked, seen)

    if comparison is None:
        return check("inconclusive", f"not measured on both the candidate and {BASELINE_NAMES[baseline]}")
    ratio = comparison.ratio
    if ratio is None:
        return check("inconclusive", "no ratio to a mean of zero or less")
    if ratio.low is None or ratio.high is None:
        alike = comparison.clusters > 1
        seen = f"{ratio.value:.3g} times, {items(comparison)}"
        outcome: Outcome = ("pass" if ratio.value <= most else "fail") if alike else "inconclusive"
        return check(outcome, seen if alike else f"{seen}: one cluster alone has no spread")
    seen = f"{ratio.value:.3g} times (95 % interval {ratio.low:.3g} to {ratio.high:.3g}, {items(comparison)})"
    return check("pass" if ratio.high <= most else "fail" if ratio.low > most else "inconclusive", seen)


def complete(check: Check, comparison: MetricComparison | None, max_missing: float) -> Check:
    """The check, or an inconclusive one if either side lacks more than the fraction `max_missing` of the other's
    values.

    The items that a model fails on are seldom like the other items, so a comparison without them may mislead.
    """
    lacking = None if comparison is None else lacks(comparison, max_missing, check.against)
    if lacking is None:
        return check
    return Check.of(check.metric, check.against, "inconclusive", check.asked, f"{check.seen}; {lacking}")


def lacks(comparison: MetricComparison, max_missing: float, against: Against) -> str | None:
    """Which side lacks more than the fraction `max_missing` of the other's values, in words; None if neither does."""
    baseline = BASELINE_NAMES[against]
    sides = (
        ("the candidate", comparison.missing_candidate, f"that {baseline} has"),
        (baseline, comparison.missing_baseline, "that the candidate has"),
    )
    reasons = [_lacking(side, count, comparison.n + count, which, max_missing) for side, count, which in sides]
    return ", and ".join(filter(None, reasons)) or None


def _lacking(side: str, count: int, of: int, which: str, max_missing: float) -> str | None:
    if count <= max_missing * of:
        return None
    share = f"{_percent(count / of)}, and max_missing is {_percent(max_missing)}"
    return f"{side} lacks {count} of the {of} values {which} ({share})"


def _percent(share: float) -> str:
    return PERCENT.format(share) + PERCENT.sign


def any_improves(
    comparisons: Mapping[str, MetricComparison], asked_of: int, max_missing: float, baseline: Against = "sft"
) -> Check:
    """Whether one of the gate's metrics is better than the baseline's, with Holm's correction over all of them.

    A metric counts neither as better nor as worse if either side lacks more than the fraction `max_missing`.
    """
    p_values = {metric: p_above(comparison.difference_interval(), 0.0) for metric, comparison in comparisons.items()}
    corrected = holm({metric: p_value for metric, p_value in p_values.items() if p_value is not None})
    incomplete = {
        metric: why
        for metric, comparison in comparisons.items()
        if (why := lacks(comparison, max_missing, baseline)) is not None
    }
    better = [metric for metric, p_value in corrected.items() if p_value < ALPHA and metric not in incomplete]
    asked = f"one of {asked_of} better, corrected for looking at all"
    if better:
        return Check.of(ANY_METRIC, baseline, "pass", asked, f"better: {', '.join(better)}")
    seen = f"none is (smallest corrected p = {min(corrected.values()):.3g})" if corrected else "none was measured"
    if incomplete:
        seen = "; ".join(
            ["none that was measured whole is", *(f"{metric}: {why}" for metric, why in incomplete.items())]
        )
    worse = [comparison.ci95 is not None and comparison.ci95[1] < 0 for comparison in comparisons.values()]
    return Check.of(
        ANY_METRIC, baseline, "fail" if worse and all(worse) and not incomplete else "inconclusive", asked, seen
    )
