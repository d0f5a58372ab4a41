"""What many shards cost where nothing changed: a sensor's tick, the manifest's request, automation's evaluation.

    python -m benchmarks.scale                                      # 10,000 files and shards, 1,000 for automation
    python -m benchmarks.scale --files 500 --shards 500 --automated 100

Everything lives in a temporary folder; files and refs are real, artifacts are not made, as none of this reads them.
Memory is what the process holds more after the last repetition than after the second.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import psutil

from alignment.recipe import Recipe, parse_recipe
from alignment.store import Artifact, Ref, Store
from alignment_dags.run.workspace import Workspace
from alignment_dags.source.sensor import watch
from assets.building.factory import asset_key, asset_resources, build_asset, shards_definition
from assets.building.node import Node
from assets.building.upstream import Upstream
from assets.graph import nodes_of
from resources.pools import Pools, load_pools
from resources.store import ArtifactStore

NAME = "scale"
REPETITIONS = 10
MIB = 1 << 20


@dataclass
class Measured:
    """Wall seconds of each repetition, and the growth of the process's memory in MiB."""

    what: str
    limit: float
    seconds: list[float] = field(default_factory=list)
    grown: float = 0.0


def measure(what: str, limit: float, work: Callable[[], object], repetitions: int = REPETITIONS) -> Measured:
    measured, process, settled = Measured(what, limit), psutil.Process(), 0
    for repetition in range(repetitions):
        began = time.perf_counter()
        work()
        measured.seconds.append(time.perf_counter() - began)
        gc.collect()
        if repetition == 1:
            settled = process.memory_info().rss
    measured.grown = (process.memory_info().rss - settled) / MIB if settled else 0.0
    return measured


def recipe_over(folder: Path) -> Recipe:
    return parse_recipe(
        {
            "name": NAME,
            "base_model": {"embedded": "micro"},
            "sft": {"dataset": {"embedded": "micro"}, "precision": "float32"},
            "preferences": {"files": [str(folder)]},
        },
        "-",
        {},
    )


def write_files(folder: Path, count: int) -> None:
    """One pair a file, written an hour ago."""
    folder.mkdir()
    then = time.time() - 3600
    for number in range(count):
        path = folder / f"day-{number:06d}.jsonl"
        path.write_text(json.dumps({"prompt": str(number), "chosen": "yes", "rejected": "no"}) + "\n", encoding="utf-8")
        os.utime(path, (then, then))


def write(store: Store, node: Node, key: str, shard: str | None) -> None:
    """A ref as the store writes it, without waiting for the disk as the store does."""
    artifact = Artifact(kind=node.stage.kind, key=key, attempt="0" * 12, digest=f"{shard}".ljust(64, "0"))
    ref = Ref(artifact=artifact, mlflow_run_id="0" * 32)
    path = Path(store.ref_path(NAME, node.name, shard))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(ref.model_dump_json(indent=1), encoding="utf-8")


def made_up(folder: Path, count: int) -> tuple[Recipe, Store, dict[str, Node]]:
    """A recipe over `count` files, whose shards and references are all current."""
    write_files(folder, count)
    recipe, store = recipe_over(folder), ArtifactStore().open()
    nodes = {node.name: node for node in nodes_of(recipe, load_pools())}
    write(store, nodes["sft_checkpoint"], "0" * 40, None)
    for name in ("preference_shard", "reference_logprobs"):
        upstream = Upstream(store, NAME)
        for shard in upstream.shards(recipe):
            write(store, nodes[name], nodes[name].stage.key(nodes[name].request(upstream, shard)), shard)
    return recipe, store, nodes


def ticks(recipe: Recipe, store: Store, instance: dg.DagsterInstance, count: int) -> Measured:
    shards = Upstream(store, NAME).shards(recipe)
    instance.add_dynamic_partitions(str(shards_definition(NAME).name), list(shards))
    workspace = Workspace(recipe, load_pools(), lambda: store)
    cursor: list[str | None] = [None]

    def tick() -> None:
        told = watch(instance, workspace, cursor[0])
        assert not told.run_requests
        cursor[0] = told.cursor

    return measure(f"sensor tick, {count:,} unchanged local files", 5.0, tick)


def manifests(recipe: Recipe, store: Store, nodes: dict[str, Node], count: int) -> Measured:
    def request() -> None:
        asked = nodes["preference_manifest"].request(Upstream(store, NAME), None)
        assert len(asked.artifacts()) == 2 * count
        nodes["preference_manifest"].stage.key(asked)

    return measure(f"manifest request, {count:,} shards", 5.0, request)


class Automated:
    """Dagster's record of a recipe with `count` shards, all of them scored, and the daemon's evaluations."""

    def __init__(self, instance: dg.DagsterInstance, recipe: Recipe, pools: Pools, count: int) -> None:
        self.instance = instance
        self.shards = [f"shard-{number}" for number in range(count)]
        nodes = nodes_of(recipe, pools)
        self.codes = {node.name: str(node.stage.code_version) for node in nodes}
        self.defs = dg.Definitions(
            [build_asset(node, recipe, pools) for node in nodes],
            resources=asset_resources(),
        )
        told = dg.evaluate_automation_conditions(self.defs, instance)
        self.cursor = told.cursor
        self.made("sft_checkpoint", "a")
        instance.add_dynamic_partitions(str(shards_definition(NAME).name), self.shards)
        for shard in self.shards:
            self.made("preference_shard", shard, shard)
            self.made("reference_logprobs", shard, shard)

    def made(self, node: str, version: str, shard: str | None = None) -> None:
        tags = {"dagster/data_version": version, "dagster/code_version": self.codes[node]}
        key = asset_key(NAME, node)
        self.instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=shard, tags=tags))

    def asks(self) -> int:
        told = dg.evaluate_automation_conditions(self.defs, self.instance, cursor=self.cursor)
        self.cursor = told.cursor
        return int(told.total_requested)


def automations(instance: dg.DagsterInstance, recipe: Recipe, count: int) -> list[Measured]:
    one = Automated(instance, recipe, load_pools(), count)

    def expect(wanted: int) -> Callable[[], None]:
        def work() -> None:
            asked = one.asks()
            assert asked == wanted, f"{asked} shards were asked for, not {wanted}"

        return work

    one.asks()
    one.asks()
    told = [measure(f"automation, {count:,} shards, nothing changed", 10.0, expect(0))]
    one.made("preference_shard", "changed", one.shards[0])
    told.append(measure(f"automation, {count:,} shards, one changed", 10.0, expect(1), 1))
    one.made("sft_checkpoint", "b")
    told.append(measure(f"automation, {count:,} shards, SFT changed", 10.0, expect(count), 1))
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="of the watched source")
    parser.add_argument("--shards", type=int, default=10_000, help="in the manifest")
    parser.add_argument("--automated", type=int, default=1_000, help="shards that automation evaluates")
    sizes = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        told: list[Measured] = []
        homes = [Path(place, name) for name in ("ticks", "automation")]
        for home in homes:
            home.mkdir()
        for what, count in (("files", sizes.files), ("shards", sizes.shards)):
            os.environ["ALIGN_HOME"] = f"{place}/{what}"
            recipe, store, nodes = made_up(Path(place, f"source-{what}"), count)
            if what == "files":
                with dg.DagsterInstance.local_temp(str(homes[0])) as instance:
                    told.append(ticks(recipe, store, instance, count))
            else:
                told.append(manifests(recipe, store, nodes, count))
        with dg.DagsterInstance.local_temp(str(homes[1])) as instance:
            told += automations(instance, recipe, sizes.automated)
    print(f"{'what':<52}{'median s':>10}{'slowest s':>11}{'limit s':>9}{'memory +MiB':>13}")
    for one in told:
        middle, slowest = statistics.median(one.seconds), max(one.seconds)
        print(f"{one.what:<52}{middle:>10.2f}{slowest:>11.2f}{one.limit:>9.0f}{one.grown:>13.1f}")


if __name__ == "__main__":
    main()
