"""The stage that compares policy, SFT baseline and champion, lets the gate decide, and writes the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignment.digest import json_digest
from alignment.stages import Context, Result, Stage
from eval.evidence import Compared, Evidence, ReportRequest, SuiteScores, gather
from eval.gate import verdict_of
from eval.report_page import page
from eval.suites import SUITES

__all__ = ["STAGE", "ReportRequest"]

COMPARISON_FILE = "comparison.json"
VERDICT_FILE = "verdict.json"
REPORT_FILE = "report.html"


def run(request: ReportRequest, context: Context) -> Result:
    """Writes `comparison.json`, `verdict.json` and `report.html`; the digest is of statistics and verdict only."""
    evidence = gather(context.store, request)
    verdict = verdict_of(request, evidence)
    sft = _plain(evidence.against_sft)
    champion = None if evidence.against_champion is None else _plain(evidence.against_champion)
    comparison = {"sft": sft, "champion": champion}
    notes = notes_on(evidence)
    _write(context.out / COMPARISON_FILE, comparison)
    _write(context.out / VERDICT_FILE, verdict.model_dump(mode="json"))
    text = page(request, evidence, verdict, notes, context.store)
    (context.out / REPORT_FILE).write_text(text, encoding="utf-8")
    summary = {
        "verdict": verdict.outcome,
        "reasons": verdict.reasons,
        "comparisons": sft["suites"],
        "champion": None if champion is None else champion["suites"],
        "notes": [*filter(None, [request.champion_note]), *notes],
    }
    return Result(json_digest([comparison, verdict.model_dump(mode="json")]), summary)


def notes_on(evidence: Evidence) -> list[str]:
    """What a reader must know beside the numbers: suites left out, and items that could not be counted."""
    notes = [f"{_title(suite)}: {reason}" for suite, reason in evidence.against_sft.left_out.items()]
    if evidence.against_champion is not None:
        left_out = evidence.against_champion.left_out
        notes += [f"{_title(suite)} against the champion: {reason}" for suite, reason in left_out.items()]
    for side, scores in (("SFT", evidence.sft), ("policy", evidence.policy)):
        for suite, found in scores.items():
            lost = _lost(found)
            if lost:
                notes.append(f"{_title(suite)}, {side}: {lost}")
    return notes


def _lost(scores: SuiteScores) -> str:
    words = {
        "failed": "items failed",
        "missing": "items without a response",
        "unparsable": "judgments without a rating",
        "unjudged": "answers without a judgment",
    }
    return ", ".join(f"{scores.summary[name]} {text}" for name, text in words.items() if scores.summary.get(name))


def _title(suite: str) -> str:
    return SUITES[suite].title if suite in SUITES else suite


def _plain(compared: Compared) -> dict[str, Any]:
    suites = {
        suite: {metric: found.model_dump(mode="json") for metric, found in metrics.items()}
        for suite, metrics in compared.suites.items()
    }
    return {"suites": suites, "left_out": compared.left_out}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


STAGE = Stage("evaluation_report", 1, ReportRequest, run)
