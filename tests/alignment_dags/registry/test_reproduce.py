"""What a certificate makes of published figures, by the reports of several seeds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer

from alignment_dags.cli import worth as cli
from alignment_dags.registry import reproduce
from alignment_dags.registry.reproduce import certified
from assets.certificate import Certificate, NotEvaluated, about, certificate_in
from eval.gate.baselines import PublishedFigure, WrittenFigure
from eval.gate.compare import MetricComparison
from eval.stages.evaluation_report import ReportSummary
from eval.statistics import repeats

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


@pytest.mark.parametrize("many", [1, 4, 8])
def test_chance_alone_is_outside_in_one_of_twenty_certificates_however_many_figures_there_are(many: int) -> None:
    """Five runs, and as many metrics as figures, each figure one more run; without the correction 5, 19 and 34 %."""
    rng, names = np.random.default_rng(many), [f"suite_{n}/acc" for n in range(many)]
    drawn = rng.normal(0.7, 0.02, (1200, 6, many)).tolist()
    outside = 0
    for *five, published in drawn:
        summaries = {seed: report(dict(zip(names, values, strict=True))) for seed, values in enumerate(five)}
        compared, _ = certified(summaries, [figure(*one) for one in zip(names, published, strict=True)])
        outside += any(each.noise == "outside" for one in compared for each in one.published)
    assert outside / len(drawn) == pytest.approx(0.05, abs=0.02)


def test_the_shown_interval_is_that_of_one_more_run_and_a_page_says_by_what_figures_are_judged() -> None:
    values = [0.5, 0.6]
    summaries = {seed: report({"gsm8k/a": value, "gsm8k/b": value}) for seed, value in enumerate(values)}
    one, _ = certified(summaries, [figure("gsm8k/a", 0.5)])
    two, _ = certified(summaries, [figure("gsm8k/a", 0.5), figure("gsm8k/b", 0.5)])
    assert (one[0].low, one[0].high) == (two[0].low, two[0].high) == (repeats(values).low, repeats(values).high)
    assert certificate().widened() == ""
    assert certificate(comparisons=2).widened().startswith("2 published figures are compared with intervals that are")


def test_a_figure_beside_equal_runs_is_neither_within_nor_outside() -> None:
    (one,), _ = certified({seed: report({"gsm8k/a": 1.0}) for seed in range(3)}, [figure("gsm8k/a", 0.98)])
    assert (one.low, one.noise, [each.noise for each in one.published]) == (None, "unknown", ["unknown"])
    assert one.published[0].judged == "cannot be judged: the runs are all equal"
    assert certificate(metrics=[one]).reproduced, "nothing was found against it"
