"""What a certificate makes of published figures, by the reports of several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from alignment_dags.cli import worth as cli
from alignment_dags.registry import reproduce
from alignment_dags.registry.reproduce import certified
from assets.certificate import Certificate, NotEvaluated, about, certificate_in
from eval.gate.baselines import PublishedFigure, WrittenFigure
from eval.gate.compare import MetricComparison
from eval.stages.evaluation_report import ReportSummary

NOTHING: dict[str, Any] = dict.fromkeys(("stderr", "ci95", "p_value", "minimum_detectable_effect"))


def report(values: dict[str, float]) -> ReportSummary:
    """A report with a value of `suite/metric` for each name, on a scale without ends."""
    comparisons: dict[str, dict[str, MetricComparison]] = {}
    for name, value in values.items():
        suite, _, metric = name.partition("/")
        comparisons.setdefault(suite, {})[metric] = MetricComparison(
            **NOTHING,
            n=50,
            clusters=50,
            baseline=0.0,
            candidate=value,
            difference=value,
            gained=0,
            lost=0,
            missing=0,
            missing_ids=[],
            verdict="inconclusive",
        )
    return ReportSummary(verdict="pass", comparisons=comparisons)


def reports(name: str, values: Sequence[float]) -> dict[int, ReportSummary]:
    return {seed: report({name: value}) for seed, value in enumerate(values)}


def figure(metric: str, value: float) -> WrittenFigure:
    return WrittenFigure(
        PublishedFigure(model="ours", metric=metric, value=value, source="a paper"), str(value), "f", 2
    )


def certificate(**more: Any) -> Certificate:
    about: dict[str, Any] = {"recipe": "small", "policy": "p" * 64, "seeds": [0, 1], "at": "2026-11-02T03:00:00+00:00"}
    return Certificate(**about, device="", code="", seed_makes=[], **{"metrics": [], **more})


def test_a_figure_of_a_metric_that_some_run_lacks_is_kept_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A suite whose judge did not answer at one seed, say: silence would pass for a figure that was reproduced."""
    both = {"gsm8k/exact_match,strict-match": 0.5, "mt_bench/average": 7.0}
    summaries = {0: report(both), 1: report({"gsm8k/exact_match,strict-match": 0.6})}
    figures = [figure("gsm8k", 0.55), figure("mt_bench", 7.1)]
    compared, lacking = certified(summaries, figures)
    assert [(one.metric, [each.value for each in one.published]) for one in compared] == [
        ("gsm8k/exact_match,strict-match", [0.55])
    ]
    assert lacking == figures[1:]
    kept = certificate(
        metrics=compared, not_evaluated=[NotEvaluated(model="ours", metric="mt_bench", value=7.1, source="a paper")]
    )
    assert not kept.reproduced and certificate_in(about(kept) or {}) == kept
    told = "mt_bench 7.1 (a paper) cannot be judged: not every run was evaluated on this metric"
    assert told in kept.told()
    monkeypatch.setattr(reproduce, "reproduce", lambda *_: {"recipe": "small", "certificate": about(kept)})
    with pytest.raises(typer.Exit) as stop:
        cli.reproduce(SimpleNamespace(), 2)
    assert stop.value.exit_code == 1 and "cannot be judged" in capsys.readouterr().out
    cli.reproduce(SimpleNamespace(), 2, dry_run=True)  # which judges nothing
