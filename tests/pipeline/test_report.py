"""The report through whole runs: beside a champion, with published figures, and the history after it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from alignment.errors import BadInput
from alignment.recipe import Recipe, parse_recipe
from alignment_dags.registry.reports import versions_of, write_report
from alignment_dags.retention.collect import carry_out, plan_of
from assets.building.upstream import Upstream

GATE = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}}


def test_a_second_version_is_reported_beside_the_first_and_both_stand_in_the_history(
    small_recipe: dict[str, Any], bring_up_to_date: Callable[[Recipe], Upstream], tmp_path: Path
) -> None:
    published = tmp_path / "published.csv"
    published.write_text("model,metric,value,source\nElsewhere,ifeval,0.31,A paper\n", encoding="utf-8")
    plain = small_recipe | {"gate": GATE, "evals": small_recipe["evals"] | {"baselines": str(published)}}
    recipe_file = tmp_path / "small.yaml"
    recipe_file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    with pytest.raises(BadInput, match="no report yet"):
        write_report(recipe_file, None, history=False)

    for beta in (0.1, 0.9):
        made = bring_up_to_date(parse_recipe(plain | {"dpo": plain["dpo"] | {"beta": beta}}, "-", {}))

    told = write_report(recipe_file, tmp_path / "made" / "report.html", history=False)
    assert told["verdict"] == "pass"
    text = (tmp_path / "made" / "report.html").read_text(encoding="utf-8")
    assert "Policy against the champion" in text and "Elsewhere" in text and "A paper" in text
    assert "0 rows are new since the champion, 0 were removed" in text and text.count(">same<") == 2
    assert "Reward margin" in text and "small" in text
    assert "Length and KL" in text and "nats a token" in text and "ranking_<wbr>accuracy" in text
    assert "held-out preferences: policy minus champion, in nats" in text

    plan = plan_of(made.store, ["small"], everything=True, keep=0)
    assert "policy_checkpoint" in {one.kind for one in plan.to_erase}
    carry_out(made.store, plan)
    assert all(one.rows for one in versions_of(parse_recipe(plain, "-", {}), made.store)), "also of an erased policy"
    told = write_report(recipe_file, tmp_path / "history.html", history=True)
    assert told["versions"] == ["1", "2"]
    assert "The champion is version 2" in (tmp_path / "history.html").read_text(encoding="utf-8")

    commit = made.store.commit_of(made("evaluation_report"))
    assert {"differences.png", "training.png"} <= set(commit.files)
    comparison = json.loads((made.store.fetch(commit.artifact) / "comparison.json").read_text(encoding="utf-8"))
    assert set(comparison["sft"]["holm"]) == {"ifeval", "preferences"}
    with dg.DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["small", "evaluation_report"]))
        measured = instance.get_latest_materialization_event(dg.AssetKey(["small", "policy_divergence"]))
    assert event is not None and event.asset_materialization is not None
    shown = {name: str(value.value) for name, value in event.asset_materialization.metadata.items()}
    for name in ("differences", "training curves"):
        assert shown[name].startswith("![") and "data:image/png;base64," in shown[name]
    assert comparison["champion"]["suites"]["preferences"]["accuracy"]["n"] > 1
    assert float(shown["preferences/accuracy/baseline"]) == 0.5
    assert measured is not None and measured.asset_materialization is not None
    plotted = measured.asset_materialization.metadata
    assert {"kl", "kl_stderr", "kl_per_token"} <= set(plotted) and plotted["prompts"].value > 1
