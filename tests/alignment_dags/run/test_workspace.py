"""One object for a recipe with its nodes, pools and store: built once, and the only place that builds nodes."""

from __future__ import annotations

import ast
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from alignment.recipe import Recipe, parse_recipe
from alignment.store import Artifact, Ref, Store
from alignment_dags.planner.forecast import forecast
from alignment_dags.run import workspace as module
from alignment_dags.run.plan import plan
from alignment_dags.run.workspace import Workspace
from assets.graph import nodes_of
from resources.pools import load_pools

PROJECT = Path(__file__).resolve().parents[3]
EMBEDDED = {"embedded": "micro"}


@pytest.fixture
def recipe() -> Recipe:
    plain = {"name": "small", "base_model": EMBEDDED, "sft": {"dataset": EMBEDDED}, "preferences": EMBEDDED}
    return parse_recipe(plain, "-", {})


def test_nodes_are_built_and_the_store_is_opened_once_when_they_are_first_asked_for(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(*given: Any) -> Any:
        calls.append("nodes")
        return nodes_of(*given)

    def opened() -> Store:
        calls.append("store")
        return Store(str(tmp_path / "store"))

    monkeypatch.setattr(module, "nodes_of", counted)
    workspace = Workspace(recipe, load_pools(), opened)
    assert calls == [], "the definitions name thousands of steps without a store"
    assert forecast(workspace) and plan(workspace) and workspace.phases
    assert sorted(calls) == ["nodes", "store"]
    assert replace(workspace).nodes is not workspace.nodes, "a tick of a sensor starts from nothing"
    with pytest.raises(FrozenInstanceError):
        workspace.recipe = recipe  # type: ignore[misc]


def test_phases_hold_every_node_once_in_the_order_they_run(recipe: Recipe, tmp_path: Path) -> None:
    workspace = Workspace(recipe, load_pools())
    assert [phase.name for phase in workspace.phases] == ["base", "shards", "reference", "train"]
    assert sorted(node.name for phase in workspace.phases for node in phase.nodes) == sorted(
        node.name for node in workspace.nodes
    )
    assert workspace.phase("shards").partitioned and not workspace.phase("train").partitioned
    (registration,) = workspace.return_phase.nodes
    assert (registration.name, registration.pool) == ("registered_model", None)


def test_upstream_reads_the_store_anew(recipe: Recipe, tmp_path: Path) -> None:
    workspace = Workspace(recipe, load_pools(), lambda: Store(str(tmp_path / "store")))
    before = workspace.upstream()
    assert before.get("sft_checkpoint") is None
    artifact = Artifact(kind="sft_checkpoint", key="k", attempt="a", digest="d")
    workspace.store.write_ref(Ref(artifact=artifact), "small", "sft_checkpoint")
    assert (before.get("sft_checkpoint"), workspace.upstream().get("sft_checkpoint")) == (None, artifact)


def test_nothing_else_in_the_dags_builds_the_nodes_of_a_recipe() -> None:
    builders = {
        str(path.relative_to(PROJECT))
        for path in (PROJECT / "alignment_dags").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        and node.module in ("assets.graph", "assets.preference_shard")
        and {"nodes_of", "preference_shard"} & {alias.name for alias in node.names}
    }
    assert builders == {"alignment_dags/run/workspace.py"}
