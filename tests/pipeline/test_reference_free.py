"""A recipe whose method takes no reference: a shorter graph, from plan and backfill to the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.methods import METHODS
from alignment.recipe import load_recipe
from alignment_dags.definitions import build_definitions
from alignment_dags.nights.state import state_of
from alignment_dags.run.workspace import Workspace
from assets.building.upstream import Upstream
from eval.stages.evaluation_report import ReportSummary
from resources.pools import load_pools

SHARD, REFERENCE = "preference_shard", "reference_logprobs"
Align = Callable[..., tuple[int, dict[str, Any], str]]


FROM_SFT = sorted(
    name for name, method in METHODS.items() if not method.needs_reference and method.start == "sft_checkpoint"
)


@pytest.mark.parametrize("loss", FROM_SFT)
def test_the_whole_graph_of_a_method_without_a_reference(
    loss: str,
    small_recipe: dict[str, Any],
    tmp_path: Path,
    bring_up_to_date: Callable[..., Upstream],
    align: Align,
    align_process: Align,
) -> None:
    path = tmp_path / "recipe.yaml"
    small_recipe["dpo"] |= {"loss": loss, "epochs": 2}
    del small_recipe["reference"]  # bfloat16 by default: no precision of a pass that is not made has to agree
    path.write_text(yaml.safe_dump(small_recipe), encoding="utf-8")
    recipe = load_recipe(path)

    graph = build_definitions([recipe]).resolve_asset_graph()
    needs = {
        key.path[-1]: {parent.path[-1] for parent in graph.get(key).parent_keys} for key in graph.get_all_asset_keys()
    }
    assert REFERENCE not in needs
    assert needs["preference_manifest"] == {SHARD}
    assert needs["policy_checkpoint"] == {"preference_manifest", "sft_checkpoint"}

    code, planned, error = align("plan", str(path))
    assert (code, {stage["stage"] for stage in planned["stages"]} & {SHARD, REFERENCE}) == (0, {SHARD}), error
    code, _, error = align("backfill", str(path), "--stage", REFERENCE)
    assert code == 2 and f"field '--stage': loss: {loss} has no {REFERENCE}" in error
    code, made, error = align_process("backfill", str(path))
    assert (code, list(made["made"]), made["behind"][SHARD]) == (0, [SHARD], []), error

    upstream = bring_up_to_date(recipe)
    store = upstream.store
    assert not list(store.commits(REFERENCE))
    history = store.commit_of(upstream("policy_checkpoint")).summary["history"]
    assert history[-1]["margin"] > history[0]["margin"]
    report = ReportSummary.of(store.commit_of(upstream("evaluation_report")))
    margin = report.comparisons["preferences"]["margin"]
    assert margin.baseline == 0 and margin.candidate > 0, "further towards the chosen side than the SFT checkpoint is"

    state = state_of(Workspace(recipe, load_pools()))
    assert (state.behind, state.manifest_behind, state.train) == ((), False, ()), "a night has nothing to do"
