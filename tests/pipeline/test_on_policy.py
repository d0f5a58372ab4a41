"""On-policy training in a whole graph: no reference, a policy like any other, a table with off-policy training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from alignment.recipe import Recipe, load_recipe
from alignment.stages.policy import ON_POLICY_FILE
from alignment.stages.stage import PolicySummary
from alignment_dags.nights.state import state_of
from alignment_dags.planner.forecast import forecast
from alignment_dags.registry.compare import diff
from alignment_dags.registry.rows import row_lineage, rows_of
from alignment_dags.retention.withdraw import withdraw
from alignment_dags.run.workspace import Workspace
from assets.building.upstream import Upstream
from eval.stages.evaluation_report import ReportSummary
from resources.pools import load_pools
from tests.pipeline.test_rounds import RUBRIC


def recipe_of(small_recipe: dict[str, Any], tmp_path: Path) -> tuple[Path, Recipe]:
    """The tiny model answers nonsense; short answers are preferred."""
    prompts = tmp_path / "prompts.jsonl"
    records = [{"prompt": [{"role": "user", "content": f"Say {n}"}], "rubric": RUBRIC} for n in range(24)]
    prompts.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    given = {key: value for key, value in small_recipe.items() if key not in ("dpo", "name")}
    settings = {"method": "grpo", "learning_rate": 1e-3, "batch_size": 8, "micro_batch_size": 16}
    given["optimise"] = settings | {"precision": "float32"}
    sampled = {"prompts": {"files": [str(prompts)]}, "n": 4, "max_new_tokens": 24, "score": {"kind": "rubric"}}
    path = tmp_path / "on_policy.yaml"
    gate = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}}
    path.write_text(yaml.safe_dump(given | {"name": "on_policy", "on_policy": sampled, "gate": gate}), encoding="utf-8")
    return path, load_recipe(path)


def test_on_policy_and_off_policy_stand_in_one_table_with_what_each_took(
    small_recipe: dict[str, Any],
    tmp_path: Path,
    finished: Callable[..., Upstream],
    bring_up_to_date: Callable[..., Upstream],
) -> None:
    off_policy = tmp_path / "off_policy.yaml"
    off_policy.write_text(yaml.safe_dump(small_recipe), encoding="utf-8")
    finished(load_recipe(off_policy))
    path, recipe = recipe_of(small_recipe, tmp_path)
    upstream = bring_up_to_date(recipe)
    store = upstream.store
    policy = store.commit_of(upstream("policy_checkpoint"))
    told = PolicySummary.of(policy)
    assert policy.stage == "on_policy_checkpoint" and told.steps == 2 and told.rollouts["answers"] == 64
    report = ReportSummary.of(store.commit_of(upstream("evaluation_report")))
    assert "ifeval" in report.comparisons and store.read_ref(recipe.name, "reference_logprobs") is None
    assert (store.fetch(upstream("evaluation_report")) / "report.html").is_file()

    table = diff(str(off_policy), str(path))
    assert table["taken"]["policy_checkpoint"][1] is None and table["taken"]["reference_logprobs"][1] is None
    assert table["taken"]["on_policy_checkpoint"][0] is None
    assert {side["seconds"] > 0 for side in table["taken"]["total"]} == {True}
    assert "ifeval/prompt_level_strict_acc" in table["metrics"]

    workspace = Workspace(recipe, load_pools())
    state = state_of(workspace)
    assert (state.manifest_behind, state.train) == (False, ()), "a night has nothing to do"
    assert "policy_checkpoint" in {stage.stage for stage in forecast(workspace)}

    prompts = pq.read_table(store.fetch(policy.artifact) / ON_POLICY_FILE)["row_id"].to_pylist()
    (learned,) = row_lineage(prompts[0])["policies"]
    assert (learned["digest"], learned["split"]) == (policy.digest, "train")
    rows = rows_of(store, recipe.model_name).to_pylist()
    assert {row["row_id"] for row in rows if (row["shard"], row["split"]) == ("(prompts)", "train")} == set(prompts)
    assert {row["split"] for row in rows if row["shard"] != "(prompts)"} == {"held_out", "dropped"}
    withdraw(path, [prompts[0]], [], "")
    again = store.commit_of(bring_up_to_date(recipe)("policy_checkpoint"))
    left = pq.read_table(store.fetch(again.artifact) / ON_POLICY_FILE)["row_id"].to_pylist()
    assert set(left) == set(prompts) - {prompts[0]}
