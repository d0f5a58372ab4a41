"""What a pipeline costs where nothing changed, as shards and nights grow: in CPU seconds, and at most linearly."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from alignment_dags.run.plan import plan
from alignment_dags.run.run import follow_source
from alignment_dags.run.workspace import Workspace
from alignment_dags.source.sensor import watch
from assets.building.factory import asset_key, shards_definition
from assets.building.upstream import Upstream
from benchmarks.scale import NAME, made_up
from resources.pools import load_pools

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]

SIZES = tuple(int(size) for size in os.environ.get("CAMPAIGN_SHARDS", "10,300,3000").split(","))
NIGHTS = 30
REPETITIONS = 3
FASTER = 2.0
"""A shard more costs at most this many times as much among many as among few."""
FREE = 1e-4
"""CPU seconds a shard that are not looked at: noise."""
SHARDS, REFERENCE = "preference_shard", "reference_logprobs"
ASSET_GRAPH = """
query {
  assetNodes {
    id groupName isPartitioned staleStatus
    assetKey { path }
    dependencyKeys { path }
    partitionStats { numMaterialized numPartitions numFailed numMaterializing }
    assetMaterializations(limit: 1) { timestamp runId }
  }
}
"""
"""What Dagster's page of the asset graph asks for."""


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of the quickest of some repetitions."""
    taken = []
    for _ in range(REPETITIONS):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def report(instance: dg.DagsterInstance, shards: list[str]) -> None:
    """A materialization of every shard, and of every other node and one shard for each of the nights that follow."""

    def made(node: str, version: str, shard: str | None = None) -> None:
        materialization = dg.AssetMaterialization(
            asset_key(NAME, node), partition=shard, tags={"dagster/data_version": version}
        )
        instance.report_runless_asset_event(materialization)

    for shard in shards:
        made(SHARDS, shard, shard)
        made(REFERENCE, shard, shard)
    for night in range(NIGHTS):
        for node in ("preference_manifest", "policy_checkpoint", "policy_responses", "evaluation_report"):
            made(node, str(night))
        made(SHARDS, str(night), shards[night % len(shards)])


@contextmanager
def asset_graph(instance: dg.DagsterInstance, folder: Path, files: Path) -> Iterator[Callable[[], object]]:
    """Asks for the graph as the page does, of a code location in this process; requests have nothing remembered."""
    from dagster._core.test_utils import in_process_test_workspace
    from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
    from dagster_graphql.test.utils import execute_dagster_graphql

    location = folder / f"location_{files.name.replace('-', '_')}.py"
    location.write_text(
        "from pathlib import Path\n"
        "from alignment_dags.definitions import build_definitions\n"
        "from benchmarks.scale import recipe_over\n"
        f"defs = build_definitions([recipe_over(Path({str(files)!r}))])\n",
        encoding="utf-8",
    )
    origin = LoadableTargetOrigin(python_file=str(location), attribute="defs")
    with in_process_test_workspace(instance, origin) as workspace:

        def ask() -> None:
            fresh = workspace.process_context.create_request_context()  # with loaders of its own, as every request has
            told = execute_dagster_graphql(fresh, ASSET_GRAPH)
            assert not told.errors
            graph = {node["assetKey"]["path"][-1]: node for node in told.data["assetNodes"]}
            known = graph[SHARDS]["partitionStats"]
            assert known["numMaterialized"] == known["numPartitions"] > 0

        yield ask


def measured(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """CPU seconds of each thing at so many shards, after the nights."""
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / f"align-{count}"))
    files = tmp_path / f"source-{count}"
    recipe, store, _ = made_up(files, count)
    workspace = Workspace(recipe, load_pools(), lambda: store)
    (home := tmp_path / f"dagster-{count}").mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        shards = list(Upstream(store, NAME).shards(recipe))
        instance.add_dynamic_partitions(str(shards_definition(NAME).name), shards)
        report(instance, shards)
        cursor: list[str | None] = [None]

        def tick() -> None:
            told = watch(instance, workspace, cursor[0])
            assert not told.run_requests
            cursor[0] = told.cursor

        def no_op() -> None:
            again = Workspace(recipe, load_pools(), lambda: store)
            assert not follow_source(instance, again)
            for planned in plan(again):
                assert not planned.node.partitioned or planned.state in ("current", "waiting", "missing")

        with asset_graph(instance, tmp_path, files) as ask:
            return {"what is behind": cpu(no_op), "a sensor's tick": cpu(tick), "the asset graph": cpu(ask)}


def test_what_nothing_costs_grows_at_most_with_the_number_of_shards(
    tables: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = {count: measured(count, tmp_path, monkeypatch) for count in SIZES}
    names = list(taken[SIZES[0]])
    with capsys.disabled():
        print(f"\n{'CPU seconds after ' + str(NIGHTS) + ' nights':<32}" + "".join(f"{size:>12,}" for size in SIZES))
        for name in names:
            print(f"{name:<32}" + "".join(f"{taken[size][name]:>12.3f}" for size in SIZES))
    few, some, many = SIZES
    for name in names:
        each = (taken[some][name] - taken[few][name]) / (some - few)  # the fixed part taken off
        later = (taken[many][name] - taken[some][name]) / (many - some)
        assert later <= max(FASTER * each, FREE), f"{name}: {each * 1e3:.2f} ms a shard, and {later * 1e3:.2f} later"
