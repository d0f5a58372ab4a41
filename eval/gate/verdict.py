"""The gate: a pure decision on the comparisons of a candidate with its baseline and with the champion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict

from alignment.digest import json_digest
from alignment.recipe.evaluation import Gate, Requirement
from eval.gate.bounded import BOUNDED
from eval.gate.compare import MetricComparison, default_margin
from eval.gate.metrics import PREFERENCES
from eval.gate.requirement import (
    Against,
    Check,
    Outcome,
    above,
    any_improves,
    at_least,
    at_most,
    complete,
    max_ratio,
)
from eval.statistics import holm, p_above

Comparisons = Mapping[str, Mapping[str, MetricComparison]]
"""By suite and metric: candidate minus baseline."""


class Verdict(BaseModel):
    """The gate's decision. `none` means that the recipe has no gate: nothing is required and nothing is promoted.

    `reasons` are those of the checks that decided; `key` identifies everything that the decision depends on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Literal["pass", "fail", "inconclusive", "none"]
    reasons: list[str]
    checks: list[Check]
    key: str


def verdict_key(sft: str, policy: str, champion: str | None, samples: Mapping[str, str], gate: Gate | None) -> str:
    """A digest (64 hex digits) over the checkpoints' digests, the digests of all scores, and the gate's settings."""
    settings = None if gate is None else gate.model_dump(mode="json")
    return json_digest([sft, policy, champion, dict(samples), settings])


def decide(
    sft: Comparisons,
    champion: Comparisons | None,
    gate: Gate | None,
    key: str,
    champion_left_out: Mapping[str, str] = MappingProxyType({}),
    baseline: Against = "sft",
    further: Sequence[Check] = (),
) -> Verdict:
    """The verdict over all requirements: `fail` if a check failed, else `inconclusive` if a check is, else `pass`.

    `no_regression` and `improve` hold if the lower end of the 95 % interval of the paired difference is above a
    threshold: minus the margin, or the required improvement. Against the champion both require no loss beyond a margin
    (a non-inferiority test). The `improve` claims are made together, so their p-values are corrected by Holm's method.
    `at_least` and `at_most` compare the candidate's mean over all its own values with a number. `max_ratio` holds if
    the upper end of the interval of the candidate's mean over the SFT baseline's is no more than a number.

    A metric that was not measured is inconclusive. So is a metric of which either side lacks more than `max_missing` of
    the other's values, or for `at_least` and `at_most` of the items that the candidate was asked. `champion_left_out`
    gives, by suite, the reason for not comparing it with the champion. `baseline` says what `sft` are the comparisons
    with. `further` are checks that no metric of the gate makes.
    """
    if gate is None:
        return Verdict(outcome="none", reasons=["the recipe has no gate: nothing is promoted"], checks=[], key=key)
    claims = _improvement_claims(sft, gate)
    checks = [
        check
        for metric, requirement in gate.metrics.items()
        for check in _checks(metric, requirement, sft, champion, claims, gate.max_missing, champion_left_out, baseline)
    ]
    if gate.any_improves:
        # without held-out preferences, which the policy was trained to win, and without what is only bounded
        asked = [
            metric
            for metric, requirement in gate.metrics.items()
            if metric.partition("/")[0] not in (PREFERENCES, *BOUNDED)
            and requirement.at_most is None
            and requirement.max_ratio is None
        ]
        comparisons = {metric: comparison for metric in asked if (comparison := _find(sft, metric)) is not None}
        checks.append(any_improves(comparisons, len(asked), gate.max_missing, baseline))
    checks += further
    outcomes = {check.outcome for check in checks}
    outcome: Outcome = "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"
    decisive = [check for check in checks if check.outcome == outcome]
    return Verdict(outcome=outcome, reasons=[check.reason for check in decisive], checks=checks, key=key)


def _improvement_claims(sft: Comparisons, gate: Gate) -> dict[str, float]:
    """One-sided p-values of the gate's `improve` requirements, corrected by Holm's method."""
    p_values = {
        metric: p_value
        for metric, requirement in gate.metrics.items()
        if requirement.improve is not None and (comparison := _find(sft, metric)) is not None
        if (p_value := p_above(comparison.difference_interval(), requirement.improve)) is not None
    }
    return holm(p_values)


def _checks(
    metric: str,
    requirement: Requirement,
    sft: Comparisons,
    champion: Comparisons | None,
    claims: Mapping[str, float],
    max_missing: float,
    left_out: Mapping[str, str],
    baseline: Against,
) -> Iterator[Check]:
    comparison = _find(sft, metric)
    if requirement.at_least is not None:
        yield at_least(metric, comparison, requirement.at_least, max_missing)
        return
    if requirement.at_most is not None:
        yield at_most(metric, comparison, requirement.at_most, max_missing)
        return
    if requirement.max_ratio is not None:
        check = max_ratio(metric, comparison, requirement.max_ratio, baseline)
        yield complete(check, comparison, max_missing)
        return
    if requirement.improve is not None:
        check = above(metric, baseline, comparison, requirement.improve, claims)
    else:
        check = above(metric, baseline, comparison, -float(requirement.no_regression or 0.0))
    yield complete(check, comparison, max_missing)
    if champion is not None:
        comparison = _find(champion, metric)
        threshold, why = champion_threshold(requirement, comparison), left_out.get(metric.partition("/")[0])
        check = above(metric, "champion", comparison, threshold, left_out=why)
        yield complete(check, comparison, max_missing)


def champion_threshold(requirement: Requirement, comparison: MetricComparison | None) -> float | None:
    """Minus the margin against the champion; None for a metric whose margin only the recipe can give."""
    if requirement.champion_margin is not None:
        return -requirement.champion_margin
    if requirement.no_regression is not None:
        return -requirement.no_regression
    return None if comparison is None or comparison.width is None else -default_margin(comparison.width)


def _find(comparisons: Comparisons, metric: str) -> MetricComparison | None:
    suite, _, name = metric.partition("/")
    return comparisons.get(suite, {}).get(name)
