"""The gate: what a candidate must show against its SFT baseline and the champion. A pure decision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from alignment.digest import json_digest
from alignment.recipe import Gate, Requirement
from eval.compare import MetricComparison
from eval.statistics import clusters_needed

Outcome = Literal["pass", "fail", "inconclusive"]
Against = Literal["sft", "champion", "itself"]
Comparisons = Mapping[str, Mapping[str, MetricComparison]]
"""Suite to metric to candidate minus baseline."""


class Check(BaseModel):
    """One requirement on one metric against one baseline. `needed` is how many clusters (prompts, questions)
    would tell, when more of them would."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    against: Against
    outcome: Outcome
    reason: str
    needed: int | None = None


class Verdict(BaseModel):
    """What the gate says. `none` when the recipe has no gate: nothing is asked and nothing is promoted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Literal["pass", "fail", "inconclusive", "none"]
    reasons: list[str]
    checks: list[Check]
    key: str


def verdict_key(sft: str, policy: str, champion: str | None, samples: Mapping[str, str], gate: Gate | None) -> str:
    """64 hex digits over the checkpoints' digests, the digests of all scores that were read, and the settings."""
    settings = None if gate is None else gate.model_dump(mode="json")
    return json_digest([sft, policy, champion, dict(samples), settings])


def decide(sft: Comparisons, champion: Comparisons | None, gate: Gate | None, key: str) -> Verdict:
    """The verdict over all requirements: one failed check fails it, else one inconclusive leaves it open.

    `no_regression` is asked against both baselines. `improve` is asked against the SFT baseline; a champion
    has made that improvement already, so against it the metric must only not be significantly worse.
    `at_least` looks at the candidate's own mean. A metric that was not measured is inconclusive.
    """
    if gate is None:
        return Verdict(outcome="none", reasons=["the recipe has no gate: nothing is promoted"], checks=[], key=key)
    checks = [
        check for metric, requirement in gate.metrics.items() for check in _checks(metric, requirement, sft, champion)
    ]
    outcomes = {check.outcome for check in checks}
    outcome: Outcome = "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"
    decisive = [check for check in checks if check.outcome == outcome]
    return Verdict(outcome=outcome, reasons=[check.reason for check in decisive], checks=checks, key=key)


def _checks(metric: str, requirement: Requirement, sft: Comparisons, champion: Comparisons | None) -> Iterator[Check]:
    if requirement.at_least is not None:
        yield _at_least(metric, _find(sft, metric), requirement.at_least)
        return
    yield _against(metric, "sft", _find(sft, metric), requirement)
    if champion is not None:
        yield _against(metric, "champion", _find(champion, metric), requirement)


def _find(comparisons: Comparisons, metric: str) -> MetricComparison | None:
    suite, _, name = metric.partition("/")
    return comparisons.get(suite, {}).get(name)


def _against(metric: str, against: Against, found: MetricComparison | None, requirement: Requirement) -> Check:
    name = {"sft": "the SFT baseline", "champion": "the champion"}[against]
    if found is None:
        reason = f"{metric}: not measured on both the candidate and {name}"
        return Check(metric=metric, against=against, outcome="inconclusive", reason=reason)
    if found.ci95 is None:
        reason = f"{metric}: too few items ({found.n}) for an interval against {name}"
        return Check(metric=metric, against=against, outcome="inconclusive", reason=reason)
    low, high = found.ci95
    seen = f"{found.difference:+.4g} against {name} (95 % interval {low:+.4g} to {high:+.4g}, n = {found.n})"
    if requirement.improve is not None and against == "champion":
        worse = high < 0
        reason = f"{metric}: {seen}, {'worse' if worse else 'not significantly worse'} than the champion"
        return Check(metric=metric, against=against, outcome="fail" if worse else "pass", reason=reason)
    threshold = requirement.improve if requirement.improve is not None else -float(requirement.no_regression or 0.0)
    asked = f"must be above {threshold:+.4g}"
    if low > threshold:
        return Check(metric=metric, against=against, outcome="pass", reason=f"{metric}: {seen}; {asked}")
    if high < threshold or (low == high == threshold):
        return Check(metric=metric, against=against, outcome="fail", reason=f"{metric}: {seen}; {asked}")
    needed = clusters_needed(found.difference_interval(), threshold)
    more = "" if needed is None or needed <= found.clusters else f"; about {needed} items would tell"
    reason = f"{metric}: {seen}; the interval holds {threshold:+.4g}{more}"
    return Check(metric=metric, against=against, outcome="inconclusive", reason=reason, needed=needed)


def _at_least(metric: str, found: MetricComparison | None, threshold: float) -> Check:
    if found is None:
        reason = f"{metric}: not measured"
        return Check(metric=metric, against="itself", outcome="inconclusive", reason=reason)
    enough = found.candidate >= threshold
    reason = f"{metric}: {found.candidate:.4g}; must be at least {threshold:.4g}"
    return Check(metric=metric, against="itself", outcome="pass" if enough else "fail", reason=reason)
