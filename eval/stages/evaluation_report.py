"""The stage that compares policy, its baseline and the champion, lets the gate decide, and writes the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from alignment.data.statistics import Finding
from alignment.digest import json_digest
from alignment.stages.stage import Context, Result, Stage
from alignment.store import Summary
from eval.gate.compare import MetricComparison
from eval.gate.evidence import Evidence, ReportRequest, gather, verdict_of
from eval.gate.metrics import headline, title_of
from eval.gate.requirement import SHORT_NAMES, Against
from eval.gate.scores import Compared
from eval.report.facts import categories_of, facts_of, items_of
from eval.report.guards import CONTAMINATION, Line, drift_of, evaluation_findings, findings_behind
from eval.report.page import by_category, page
from eval.report.pictures import write_pictures
from eval.statistics import holm
from eval.summaries import NewRowsSummary

__all__ = ["STAGE", "ReportRequest"]

COMPARISON_FILE = "comparison.json"
VERDICT_FILE = "verdict.json"
REPORT_FILE = "report.html"


Comparisons = dict[str, dict[str, MetricComparison]]
"""Suite to metric to comparison."""


class ReportSummary(Summary):
    """The gate's verdict with its reasons, the comparisons behind it, and notes for the reader.

    `comparisons` are with the baseline, where the policy started. `champion` are those with the champion (None without
    a champion). `holm` has the suites' p-values against the baseline after Holm's correction.
    """

    verdict: str
    reasons: list[str] = Field(default_factory=list)
    comparisons: Comparisons = Field(default_factory=dict)
    champion: Comparisons | None = None
    holm: dict[str, float] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    bounded: Comparisons = Field(default_factory=dict)
    """With the baseline: answers and divergence, which are no suites."""
    baseline: Against | None = None
    """What the baseline is; None in records of earlier versions."""
    contamination: Finding | None = None
    """Whether training rows hold items of the suites; None where nobody could look."""


def run(request: ReportRequest, context: Context) -> Result:
    """Writes `comparison.json`, `verdict.json`, `report.html` and its figures as small pictures.

    The digest is of statistics and verdict only. Dates, costs and the page's text are not part of it.
    """
    evidence = gather(context.store, request)
    verdict, baseline = verdict_of(request, evidence), SHORT_NAMES[evidence.baseline]
    sft = _plain(evidence.against_sft)
    champion = None if evidence.against_champion is None else _plain(evidence.against_champion)
    comparison = {"sft": sft, "champion": champion}
    notes = notes_on(evidence, baseline)
    drift = [] if request.new_rows is None else drift_of(NewRowsSummary.of(context.store.commit_of(request.new_rows)))
    facts = facts_of(context.store, request)
    scores = {
        side: {suite: one.summary for suite, one in of.items()} for side, of in evidence.by_side(baseline).items()
    }
    bounded = evidence.against_sft.bounded
    contamination = next((each for each in facts.preferences if each.name == CONTAMINATION), None)
    found = evaluation_findings(verdict.outcome, verdict.reasons, bounded, scores)
    guards = [
        *findings_behind(context.store, request.policy),
        *(Line("new_rows", each) for each in drift),
        *(Line("evaluation_report", each) for each in found),
    ]
    _write(context.out / COMPARISON_FILE, comparison)
    _write(context.out / VERDICT_FILE, verdict.model_dump(mode="json"))
    text = page(request, evidence, verdict, sft["holm"], notes, facts, context.store, guards)
    (context.out / REPORT_FILE).write_text(text, encoding="utf-8")
    named = {
        suite: categories_of(items_of(context.store, request.policy_scores[suite], suite))
        for suite in evidence.answered
    }
    write_pictures(context.out, evidence.against_sft, by_category(evidence, named, baseline), facts.history)
    summary = ReportSummary(
        verdict=verdict.outcome,
        reasons=verdict.reasons,
        comparisons=evidence.against_sft.suites,
        champion=None if evidence.against_champion is None else evidence.against_champion.suites,
        holm=sft["holm"],
        notes=[
            *filter(None, [request.champion_note]),
            *notes,
            *(f"new rows: {finding.sentence}" for finding in drift),
            *facts.outside_practice,
        ],
        bounded=bounded,
        contamination=contamination,
        baseline=evidence.baseline,
    )
    return Result(json_digest([comparison, verdict.model_dump(mode="json")]), summary)


def notes_on(evidence: Evidence, baseline: str) -> list[str]:
    """Notes for the reader: suites that were left out, and items that could not be counted; `baseline` is its name."""
    notes = [f"{title_of(suite)}: {reason}" for suite, reason in evidence.against_sft.left_out.items()]
    if evidence.against_champion is not None:
        left_out = evidence.against_champion.left_out
        notes += [f"{title_of(suite)} against the champion: {reason}" for suite, reason in left_out.items()]
    for side, scores in ((baseline, evidence.sft), ("policy", evidence.policy)):
        for suite, suite_scores in scores.items():
            if told := suite_scores.summary.told_lacking:
                notes.append(f"{title_of(suite)}, {side}: {told}")
    return notes


def corrected(suites: Mapping[str, Mapping[str, MetricComparison]]) -> dict[str, float]:
    """The p-values of the suites' main metrics, corrected by Holm's method for having looked at all suites."""
    p_values = {suite: metrics[headline(suite, metrics)].p_value for suite, metrics in suites.items()}
    return holm({suite: p_value for suite, p_value in p_values.items() if p_value is not None})


def _plain(compared: Compared) -> dict[str, Any]:
    suites = {
        suite: {metric: comparison.model_dump(mode="json") for metric, comparison in metrics.items()}
        for suite, metrics in compared.suites.items()
    }
    bounded = {
        name: {metric: comparison.model_dump(mode="json") for metric, comparison in metrics.items()}
        for name, metrics in compared.bounded.items()
    }
    plain = {"suites": suites, "left_out": compared.left_out, "holm": corrected(compared.suites)}
    return plain | ({"bounded": bounded} if bounded else {})


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


STAGE = Stage("evaluation_report", 4, ReportRequest, run)
