"""A recipe whose policy starts from the base model: no SFT anywhere, from the graph to the registry and retention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.recipe import Recipe, load_recipe
from alignment_dags.cli.models import lines
from alignment_dags.definitions import build_definitions
from alignment_dags.nights.state import state_of
from alignment_dags.planner.forecast import forecast
from alignment_dags.registry.export import export
from alignment_dags.registry.lineage import lineage_of
from alignment_dags.registry.reports import write_report
from alignment_dags.registry.rows import row_lineage
from alignment_dags.retention.collect import collect
from alignment_dags.retention.withdraw import find_rows, withdraw
from alignment_dags.run.workspace import Workspace
from assets.building.upstream import Upstream
from assets.evaluation_report import show
from eval.stages.evaluation_report import ReportSummary
from resources.pools import load_pools

GATE = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}, "any_improves": False}


@pytest.fixture
def recipe_file(small_recipe: dict[str, Any], tmp_path: Path) -> Path:
    training = {name: value for name, value in small_recipe.pop("dpo").items() if name != "micro_batch_size"}
    del small_recipe["sft"], small_recipe["reference"]
    path = tmp_path / "recipe.yaml"
    orpo = {"method": "orpo", **training, "epochs": 2}
    path.write_text(yaml.safe_dump(small_recipe | {"optimise": orpo, "gate": GATE}), encoding="utf-8")
    return path


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return load_recipe(recipe_file)


def test_the_graph_has_no_sft_and_the_base_model_in_its_place(
    recipe: Recipe, recipe_file: Path, align: Callable[..., tuple[int, dict[str, Any], str]]
) -> None:
    graph = build_definitions([recipe]).resolve_asset_graph()
    needs = {
        "/".join(key.path[1:]): {"/".join(parent.path[1:]) for parent in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
    }
    assert not [name for name in needs if "sft" in name or name == "reference_logprobs"]
    assert needs["policy_checkpoint"] == {"preference_manifest", "base_model"}
    assert needs["base_responses"] == {"base_model"} and needs["base_evals/ifeval"] == {"base_responses"}
    assert {"base_model", "base_evals/ifeval"} <= needs["evaluation_report"]

    code, planned, error = align("plan", str(recipe_file))
    stages = [stage["stage"] for stage in planned["stages"]]
    assert code == 0 and set(stages) == set(needs), error
    policy = next(stage for stage in planned["stages"] if stage["stage"] == "policy_checkpoint")
    assert policy["memory_gib"]["value"] > 0 and "config.json in" in policy["memory_gib"]["how"]
    code, _, error = align("backfill", str(recipe_file), "--stage", "reference_logprobs")
    assert code == 2 and "method: orpo has no reference_logprobs" in error


def test_a_run_registers_a_policy_that_is_compared_with_its_base_model(
    recipe: Recipe, recipe_file: Path, bring_up_to_date: Callable[..., Upstream], tmp_path: Path
) -> None:
    upstream = bring_up_to_date(recipe)
    store, base, policy = upstream.store, upstream("base_model"), upstream("policy_checkpoint")
    assert not [kind for kind in ("sft_checkpoint", "sft_dataset", "reference_logprobs") if list(store.commits(kind))]
    trained = store.commit_of(policy)
    assert trained.inputs["checkpoint"] == base
    assert trained.summary["history"][-1]["margin"] > trained.summary["history"][0]["margin"]

    commit = store.commit_of(upstream("evaluation_report"))
    assert commit.inputs["sft"] == base, "the baseline"
    report = ReportSummary.of(commit)
    assert report.verdict == "pass" and "against the base model" in report.reasons[0]
    margin = report.comparisons["preferences"]["margin"]
    assert margin.baseline == 0 and margin.candidate > 0, "further towards the chosen side than the base model is"
    page = (store.fetch(commit.artifact) / "report.html").read_text(encoding="utf-8")
    assert "<dt>Base model</dt>" in page and "Policy against its base model" in page and "SFT" not in page
    assert "| base model |" in show(commit, store.fetch(commit.artifact)).markdown["comparison"]
    assert write_report(recipe_file, tmp_path / "history.html", history=True)["versions"] == ["1"]
    assert "SFT" not in (tmp_path / "history.html").read_text(encoding="utf-8")

    record = lineage_of("small")
    assert record["sft"] is None and record["base"]["digest"] == base.digest
    told = "\n".join(lines(record))
    assert "base model: " in told and "SFT checkpoint" not in told
    assert yaml.safe_load(record["recipe"])["optimise"]["method"] == "orpo"
    assert export("small", tmp_path / "exported", print)["files"]

    workspace = Workspace(recipe, load_pools())
    state = state_of(workspace)
    assert (state.behind, state.manifest_behind, state.train) == ((), False, ()), "a night has nothing to do"
    assert [stage.stage for stage in forecast(workspace) if stage.to_make] == []

    row = find_rows(recipe_file, "a")["rows"][0]["row_id"]
    assert [found["digest"] for found in row_lineage(row)["policies"]] == [policy.digest]
    assert withdraw(recipe_file, [row], [], "asked")["rows"][row]
    bring_up_to_date(recipe)
    collect([recipe_file], keep=1, dry_run=False)
    assert store.fetch(base, deep=True) and store.commit_of(policy)
