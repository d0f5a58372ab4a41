"""One requirement of the gate on one metric, decided and put in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from eval.gate.compare import MetricComparison
from eval.gate.metrics import PERCENT, unit_of
from eval.statistics import clusters_needed, holm, p_above

Outcome = Literal["pass", "fail", "inconclusive"]
Against = Literal["sft", "champion", "itself"]

LEVEL = 0.025
"""Of a one-sided test: that the lower end of a 95 % interval lies above a threshold."""
ANY = "any metric"
OTHER_SETTINGS = "measured with other settings"
"""Why the scores of two checkpoints are not compared, where changing the settings back would help."""
OTHER_REFERENCE = "measured with another reference or token policy"
"""The same of held-out preferences, which are relative to the SFT checkpoint below a policy."""
NO_PAIRS = "measured on no held-out pairs"
NO_SHARED_PAIRS = "measured on other held-out pairs only"
BEGIN_ANEW = (OTHER_REFERENCE, NO_PAIRS, NO_SHARED_PAIRS)
"""Where no later run can measure both."""
OVERRIDE = "promote the policy with `align promote --override` to begin anew"
REMEDY = (
    "`align run` measures it again while its weights are there; after that, change the settings back, or promote the "
    "policy with `align promote --override`"
)
NAMES = {"sft": "the SFT baseline", "champion": "the champion"}


class Check(BaseModel):
    """One requirement on one metric against one baseline. `asked` and `seen` are its two sides in words, `reason`
    both in one line; `needed` is how many clusters (prompts, questions) would tell, when more of them would."""

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
        place = f" against {NAMES[against]}" if against in NAMES else ""
        reason = f"{metric}{place}: {seen}; asked: {asked}"
        return cls(
            metric=metric, against=against, outcome=outcome, asked=asked, seen=seen, reason=reason, needed=needed
        )


def above(
    metric: str,
    against: Against,
    found: MetricComparison | None,
    threshold: float | None,
    claims: Mapping[str, float] | None = None,
    left_out: str | None = None,
) -> Check:
    """Whether the difference is known to lie above the threshold, which is None where nobody has said it.

    `left_out` is why the suite was not compared, where it was not.
    `claims` are the corrected p-values of all claims made together, this one among them; without, it stands alone.
    """
    asked = "a margin" if threshold is None else _asked(found, threshold)

    def check(outcome: Outcome, seen: str, needed: int | None = None) -> Check:
        return Check.of(metric, against, outcome, asked, seen, needed)

    if found is None and left_out == OTHER_SETTINGS:
        return check("inconclusive", f"{NAMES[against]} was {OTHER_SETTINGS}; {REMEDY}")
    if found is None and left_out in BEGIN_ANEW:
        return check("inconclusive", f"{NAMES[against]} was {left_out}; {OVERRIDE}")
    if found is None:
        return check("inconclusive", f"not measured on both the candidate and {NAMES[against]}")
    if threshold is None:
        return check("inconclusive", "this metric's scale has no end, so champion_margin has to be given")
    if found.ci95 is None:
        return check("inconclusive", f"no interval from {items(found)}: {_no_interval(found)}")
    low, high = found.ci95
    unit = unit_of(found.width)
    seen = (
        f"{unit.told(found.difference, '+')} {unit.name} "
        f"(95 % interval {unit.told(low, '+')} to {unit.told(high, '+')}, {items(found)})"
    )
    if high <= threshold:
        return check("fail", seen)
    if low > threshold:
        together = (
            f"; corrected for {len(claims)} claims p = {claims[metric]:.3g}" if claims and len(claims) > 1 else ""
        )
        holds = not claims or claims[metric] < LEVEL
        return check("pass" if holds else "inconclusive", seen + together)
    needed = clusters_needed(found.difference_interval(), threshold)
    more = "" if needed is None or needed <= found.clusters else f"; about {needed} items would tell"
    return check("inconclusive", seen + more, needed)


def _no_interval(found: MetricComparison) -> str:
    if found.clusters < 2:
        return "one cluster alone has no spread"
    return "all differ by the same, and this metric's values have no bound that would limit what was not seen"


def _asked(found: MetricComparison | None, threshold: float) -> str:
    told = f"{threshold:+.4g}".replace("-", "−") if found is None else unit_of(found.width).told(threshold, "+")
    return f"more than {told}"


def items(found: MetricComparison) -> str:
    """How many values in how many clusters, and how many were left out, told apart where one side alone lacks them."""
    clusters = "" if found.clusters == found.n else f" in {found.clusters} clusters"
    if not found.missing:
        return f"n = {found.n}{clusters}"
    sides = [
        f"{count} lacking in the {side} alone"
        for side, count in (("candidate", found.missing_candidate), ("baseline", found.missing_baseline))
        if count
    ]
    told = f" ({', '.join(sides)})" if sides else ""
    return f"n = {found.n}{clusters}, {found.missing} left out{told}"


def at_least(metric: str, found: MetricComparison | None, threshold: float, max_missing: float) -> Check:
    """Whether the candidate's own mean, over all it was asked, reaches the threshold; open where it lacks more than
    `max_missing` of that."""
    if found is None:
        return Check.of(metric, "itself", "inconclusive", f"at least {threshold:.4g}", "not measured")
    own, unit = found.own_of("candidate"), unit_of(found.width)
    sign = " %" if found.width == 1.0 else ""
    asked = f"at least {unit.told(threshold)}{sign}"
    seen = f"{unit.told(own.mean)}{sign}, {items(found) if own.n == found.n else f'n = {own.n}'}"
    lacking = _lacking("the candidate", own.asked - own.n, own.asked, "it was asked for", max_missing)
    if lacking is not None:
        return Check.of(metric, "itself", "inconclusive", asked, f"{seen}; {lacking}")
    return Check.of(metric, "itself", "pass" if own.mean >= threshold else "fail", asked, seen)


def complete(check: Check, found: MetricComparison | None, max_missing: float) -> Check:
    """The check, left open where one side alone lacks more than this share of what the other was measured on:
    items that one model fails on are seldom like the others, whichever model it is."""
    lacking = None if found is None else lacks(found, max_missing, "champion" if check.against == "champion" else "sft")
    if lacking is None:
        return check
    return Check.of(check.metric, check.against, "inconclusive", check.asked, f"{check.seen}; {lacking}")


def lacks(found: MetricComparison, max_missing: float, against: Against) -> str | None:
    """What one side alone lacks beyond `max_missing`, in words; None where the comparison is whole enough."""
    baseline = NAMES[against]
    sides = (
        ("the candidate", found.missing_candidate, f"that {baseline} has"),
        (baseline, found.missing_baseline, "that the candidate has"),
    )
    told = [_lacking(side, count, found.n + count, which, max_missing) for side, count, which in sides]
    return ", and ".join(filter(None, told)) or None


def _lacking(side: str, count: int, of: int, which: str, max_missing: float) -> str | None:
    if count <= max_missing * of:
        return None
    share = f"{_percent(count / of)}, and max_missing is {_percent(max_missing)}"
    return f"{side} lacks {count} of the {of} values {which} ({share})"


def _percent(share: float) -> str:
    return PERCENT.told(share) + PERCENT.sign


def any_improves(found: Mapping[str, MetricComparison], asked_of: int, max_missing: float) -> Check:
    """Whether one of the gate's metrics is better than the SFT baseline's, corrected for having looked at all.

    A metric of which one side lacks more than `max_missing` shows neither that it is better nor that it is worse.
    """
    p_values = {metric: p_above(one.difference_interval(), 0.0) for metric, one in found.items()}
    corrected = holm({metric: p_value for metric, p_value in p_values.items() if p_value is not None})
    told = {metric: why for metric, one in found.items() if (why := lacks(one, max_missing, "sft")) is not None}
    better = [metric for metric, p_value in corrected.items() if p_value < LEVEL and metric not in told]
    asked = f"one of {asked_of} better, corrected for looking at all"
    if better:
        return Check.of(ANY, "sft", "pass", asked, f"better: {', '.join(better)}")
    seen = f"none is (smallest corrected p = {min(corrected.values()):.3g})" if corrected else "none was measured"
    if told:
        seen = "; ".join(["none that was measured whole is", *(f"{metric}: {why}" for metric, why in told.items())])
    worse = [one.ci95 is not None and one.ci95[1] < 0 for one in found.values()]
    return Check.of(ANY, "sft", "fail" if worse and all(worse) and not told else "inconclusive", asked, seen)
