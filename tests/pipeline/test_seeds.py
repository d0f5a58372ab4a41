"""A gate that asks for several trainings says how much they vary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from alignment.recipe import load_recipe
from alignment.stages.stage import ReferenceSummary
from assets.building.upstream import Upstream
from eval.stages.evaluation_report import ReportSummary


def test_the_spread_from_run_to_run_stands_with_the_verdict(
    small_recipe: dict[str, Any], tmp_path: Path, bring_up_to_date: Callable[..., Upstream]
) -> None:
    gate = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}, "seeds": 2}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe | {"gate": gate}), encoding="utf-8")
    upstream = bring_up_to_date(load_recipe(path))
    store = upstream.store
    policies = [upstream("policy_checkpoint"), upstream("seed_1/policy_checkpoint")]
    assert policies[0].digest != policies[1].digest
    scored = [ReferenceSummary.of(commit) for commit in store.commits("reference_logprobs")]
    assert sum(one.scored for one in scored) == 2 * sum(one.rows for one in scored), "one reference pass"
    report = ReportSummary.of(store.commit_of(upstream("evaluation_report")))
    assert report.verdict == "pass" and "2 trainings with other seeds gave" in report.reasons[-1]
    assert "Olmo 3 published 0.88" in report.reasons[-1]
    assert upstream("registered_model"), "the verdict that a registration computes again is the same"
