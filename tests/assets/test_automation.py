"""What the daemon asks for by itself: exactly the shards whose inputs changed, whatever happens meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import dagster as dg
import pytest

from alignment.recipe import Recipe, parse_recipe
from alignment_dags.run.shards import drop
from assets.building.factory import asset_key, asset_resources, build_asset, shards_definition
from assets.graph import nodes_of
from resources.pools import load_pools
from resources.store import ArtifactStore

NAME = "night"
SFT, SHARD, REFERENCE = (asset_key(NAME, node) for node in ("sft_checkpoint", "preference_shard", "reference_logprobs"))
RECIPE: Recipe = parse_recipe(
    {
        "name": NAME,
        "base_model": {"embedded": "micro"},
        "sft": {"dataset": {"embedded": "micro"}, "precision": "float32"},
        "preferences": {"embedded": "micro"},
    },
    "-",
    {},
)


def definitions(reference_code: int | None = None) -> dg.Definitions:
    pools = load_pools()
    nodes = nodes_of(RECIPE, pools)
    if reference_code is not None:
        nodes = [
            replace(node, stage=replace(node.stage, code_version=reference_code))
            if node.name == "reference_logprobs"
            else node
            for node in nodes
        ]
    return dg.Definitions(
        assets=[build_asset(node, RECIPE, pools) for node in nodes],
        resources=asset_resources(),
    )


def event_of(run: dg.DagsterRun, kind: dg.DagsterEventType) -> dg.EventLogEntry:
    event = dg.DagsterEvent(event_type_value=kind.value, job_name=run.job_name)
    return dg.EventLogEntry(
        error_info=None, level=20, user_message="", run_id=run.run_id, timestamp=time.time(), dagster_event=event
    )


class Daemon:
    """Dagster's record of a recipe, and the daemon's evaluations of it."""

    def __init__(self, instance: dg.DagsterInstance, shards: int) -> None:
        self.instance = instance
        self.shards = {f"day-{index}" for index in range(shards)}
        self.cursor = None
        self.defs = definitions()
        self.code = {str(spec.key): str(spec.code_version) for spec in self.defs.resolve_all_asset_specs()}

    def add(self, *shards: str) -> None:
        self.instance.add_dynamic_partitions(str(shards_definition(NAME).name), list(shards))

    def made(self, key: dg.AssetKey, version: str, shard: str | None = None) -> None:
        tags = {"dagster/data_version": version, "dagster/code_version": self.code[str(key)]}
        self.instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=shard, tags=tags))

    def starts(self, key: dg.AssetKey, shard: str) -> dg.DagsterRun:
        job = self.defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection={key})
        run = self.instance.create_run_for_job(job, asset_selection=frozenset({key}), tags={"dagster/partition": shard})
        self.instance.handle_new_event(event_of(run, dg.DagsterEventType.RUN_START))
        return run

    def ends(self, run: dg.DagsterRun) -> None:
        self.instance.handle_new_event(event_of(run, dg.DagsterEventType.RUN_SUCCESS))

    def asks(self) -> set[str]:
        """The shards whose reference log-probs one evaluation asks for; nothing else is ever asked for."""
        told = dg.evaluate_automation_conditions(self.defs, self.instance, cursor=self.cursor)
        self.cursor = told.cursor
        shards = told.get_requested_partitions(REFERENCE)
        assert told.total_requested == len(shards)
        return {str(shard) for shard in shards}

    def settle(self) -> None:
        """Everything is made and the daemon has seen it."""
        self.made(SFT, "sft")
        self.add(*sorted(self.shards))
        for shard in self.shards:
            self.made(SHARD, f"{shard} A", shard)
        assert self.asks() == self.shards
        for shard in self.shards:
            self.made(REFERENCE, f"scores of {shard} A", shard)
        assert self.asks() == set()
        assert self.asks() == set()


@pytest.fixture(params=[3, 300])
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with dg.DagsterInstance.ephemeral() as instance:
        daemon = Daemon(instance, request.param)
        daemon.settle()
        yield daemon


def test_a_new_shard_is_asked_for_once_it_is_made_and_no_other(daemon: Daemon) -> None:
    daemon.add("new")
    assert daemon.asks() == set()
    daemon.made(SHARD, "new A", "new")
    assert daemon.asks() == {"new"}
    assert daemon.asks() == set()


def test_a_changed_shard_is_asked_for_and_no_other(daemon: Daemon) -> None:
    daemon.made(SHARD, "day-1 B", "day-1")
    assert daemon.asks() == {"day-1"}
    daemon.made(REFERENCE, "scores of day-1 B", "day-1")
    assert daemon.asks() == set()


def test_a_shard_rewritten_with_the_same_content_asks_for_nothing(daemon: Daemon) -> None:
    daemon.made(SHARD, "day-1 A", "day-1")
    assert daemon.asks() == set()


def test_a_dropped_shard_asks_for_nothing_and_come_back_it_is_asked_for(daemon: Daemon) -> None:
    drop(daemon.instance, ArtifactStore().open(), NAME, ["day-1"])
    assert daemon.asks() == set()
    daemon.made(SFT, "another sft")
    assert daemon.asks() == daemon.shards - {"day-1"}
    daemon.add("day-1")
    assert daemon.asks() == set()
    daemon.made(SHARD, "day-1 A", "day-1")
    assert daemon.asks() == {"day-1"}


def test_another_sft_checkpoint_asks_for_every_shard(daemon: Daemon) -> None:
    daemon.made(SFT, "sft")
    assert daemon.asks() == set()
    daemon.made(SFT, "another sft")
    assert daemon.asks() == daemon.shards
    assert daemon.asks() == set()


def test_another_code_version_asks_for_nothing_as_it_waits_for_a_person(daemon: Daemon) -> None:
    daemon.defs = definitions(reference_code=1000)
    assert daemon.asks() == set()
    daemon.made(SHARD, "day-1 B", "day-1")
    assert daemon.asks() == {"day-1"}


def test_a_change_that_comes_while_its_shard_is_scored_is_not_forgotten(daemon: Daemon) -> None:
    daemon.made(SHARD, "day-1 B", "day-1")
    assert daemon.asks() == {"day-1"}
    run = daemon.starts(REFERENCE, "day-1")
    daemon.made(SHARD, "day-1 A", "day-1")
    assert daemon.asks() == set(), "two runs would race"
    daemon.made(REFERENCE, "scores of day-1 B", "day-1")
    daemon.ends(run)
    assert daemon.asks() == {"day-1"}


def test_a_shard_that_was_made_before_the_daemon_first_looked_is_asked_for() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        daemon = Daemon(instance, 3)
        daemon.made(SFT, "sft")
        daemon.add(*daemon.shards)
        for shard in daemon.shards:
            daemon.made(SHARD, f"{shard} A", shard)
        assert daemon.asks() == daemon.shards
