"""A watched folder: what each tick asks Dagster for, over a real store and a real instance."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from alignment.data import shards as shards_module
from alignment.data.rows import read_rows
from alignment.data.withdrawal import Tombstone, bury, lift, now
from alignment.errors import BadInput
from alignment.recipe import DataSource, PreferenceSource, Recipe, parse_recipe
from alignment.stages import SourceFile, execute
from alignment.stages import preference_shard as shard_module
from alignment.stages.preference_shard import STAGE, ShardRequest
from alignment.store import Artifact, Ref
from alignment_dags.run.launch import RANGE_END, RANGE_START
from alignment_dags.run.run import follow_source, split_by_hand
from alignment_dags.run.upgrade import Moved, Upgrades, moved_stages
from alignment_dags.run.workspace import Workspace
from alignment_dags.source import decide as cursor_module
from alignment_dags.source import observe as look_module
from alignment_dags.source import sensor as module
from alignment_dags.source.sensor import watch
from assets import preference_shard as shard_node
from assets.building.factory import BAD_INPUT, shards_definition
from assets.building.upstream import Upstream
from assets.preference_shard import preference_shard
from resources.alerts import Alert
from resources.pools import load_pools
from resources.store import ArtifactStore


def recipe_over(folder: Path, name: str = "night", **preferences: Any) -> Recipe:
    return parse_recipe(
        {
            "name": name,
            "base_model": {"embedded": "micro"},
            "sft": {"dataset": {"embedded": "micro"}, "precision": "float32"},
            "preferences": {"files": [str(folder)], "settle_seconds": 0, **preferences},
        },
        "-",
        {},
    )


class Watched:
    """A recipe over a folder, with the daemon's part played by hand: ticks, and runs of what they ask for."""

    def __init__(self, instance: dg.DagsterInstance, recipe: Recipe, folder: Path) -> None:
        self.instance = instance
        self.recipe = recipe
        self.folder = folder
        self.cursor: str | None = None
        self.run_keys: list[str] = []
        self.skipped: str | None = None

    def write(self, name: str, *answers: str, age: float = 3600) -> Path:
        rows = [{"prompt": f"{name} {number}", "chosen": one, "rejected": "no"} for number, one in enumerate(answers)]
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        written = time.time() - age
        os.utime(path, (written, written))
        return path

    def tick(self) -> list[str]:
        """Shards that one tick asks for."""
        told = watch(self.instance, Workspace(self.recipe, load_pools()), self.cursor)
        self.cursor = told.cursor
        self.skipped = told.skip_reason.skip_message if told.skip_reason else None
        for request in told.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        order, asked = self.partitions, []
        for request in told.run_requests or []:
            assert request.run_key not in self.run_keys, "Dagster launches no run key twice"
            self.run_keys.append(str(request.run_key))
            first, last = (request.tags.get(tag, request.partition_key) for tag in (RANGE_START, RANGE_END))
            asked += order[order.index(str(first)) : order.index(str(last)) + 1]
        return asked

    def make(self, *shards: str) -> None:
        """What the runs do; raises what they fail with."""
        store, node = ArtifactStore().open(), preference_shard(self.recipe)
        for shard in shards:
            commit = execute(node.stage, node.request(Upstream(store, self.recipe.name), shard), store)
            store.write_ref(Ref(artifact=commit.artifact), self.recipe.name, node.name, shard)

    def fail(self, reason: str) -> None:
        """The run that was asked for last ends with this reason."""

        @dg.op
        def step() -> None:
            raise dg.Failure("failed", metadata={BAD_INPUT: reason})

        @dg.job
        def shards() -> None:
            step()

        shards.execute_in_process(
            instance=self.instance, tags={module.RUN_KEY: self.run_keys[-1]}, raise_on_error=False
        )

    @property
    def partitions(self) -> list[str]:
        return list(self.instance.get_dynamic_partitions(str(shards_definition(self.recipe.name).name)))

    def rows(self, shard: str) -> str | None:
        found = Upstream(ArtifactStore().open(), self.recipe.name).get("preference_shard", shard)
        return found.digest if found else None


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def watched(tmp_path: Path, instance: dg.DagsterInstance) -> Watched:
    """Three shards, made."""
    folder = tmp_path / "source"
    folder.mkdir()
    watched = Watched(instance, recipe_over(folder), folder)
    for day in ("day-0", "day-1", "day-2"):
        watched.write(day, "yes")
    assert watched.tick() == watched.partitions == ["day-0", "day-1", "day-2"]
    watched.make(*watched.partitions)
    assert watched.tick() == []
    return watched


@pytest.fixture
def alerts(monkeypatch: pytest.MonkeyPatch) -> list[Alert]:
    sent: list[Alert] = []
    monkeypatch.setattr(module, "send", lambda settings, alert: sent.append(alert))
    return sent


def test_a_new_file_becomes_a_shard_and_a_changed_one_is_asked_for_again(watched: Watched) -> None:
    watched.write("day-3", "yes")
    assert watched.tick() == ["day-3"]
    watched.make("day-3")
    watched.write("day-1", "maybe", age=60)
    assert watched.tick() == ["day-1"]
    watched.make("day-1")
    assert watched.tick() == []
    assert watched.skipped == "4 shards are current"


def test_a_file_written_again_with_the_same_content_asks_for_nothing(watched: Watched) -> None:
    watched.write("day-1", "yes", age=60)
    assert watched.tick() == []


def test_a_shard_that_goes_from_a_to_b_to_a_ends_at_a(watched: Watched) -> None:
    first = watched.rows("day-1")
    for answer, age in (("maybe", 60), ("yes", 30)):
        watched.write("day-1", answer, age=age)
        assert watched.tick() == ["day-1"]
        watched.make("day-1")
    assert watched.rows("day-1") == first
    assert watched.tick() == []


def test_a_renamed_file_is_found_in_the_store_under_its_new_name(watched: Watched) -> None:
    first = watched.rows("day-1")
    (watched.folder / "day-1.jsonl").rename(watched.folder / "monday.jsonl")
    assert watched.tick() == ["monday"]
    assert watched.partitions == ["day-0", "day-2", "monday"]
    assert watched.rows("day-1") is None
    watched.make("monday")
    assert watched.rows("monday") == first
    assert len(list(ArtifactStore().open().commits("preference_shard"))) == 3


def test_a_vanished_file_is_withdrawn_and_comes_back_when_it_does(watched: Watched) -> None:
    first = watched.rows("day-1")
    (watched.folder / "day-1.jsonl").unlink()
    assert watched.tick() == []
    assert watched.skipped == "2 shards are current; left out: day-1"
    assert watched.partitions == ["day-0", "day-2"]
    assert watched.rows("day-1") is None
    watched.write("day-1", "yes")
    assert watched.tick() == ["day-1"]
    watched.make("day-1")
    assert watched.rows("day-1") == first


def test_a_file_that_may_still_be_being_written_waits(watched: Watched) -> None:
    watched.recipe = recipe_over(watched.folder, settle_seconds=1800)
    watched.write("day-1", "maybe", age=1)
    watched.write("day-3", "yes", age=1)
    assert watched.tick() == []
    assert watched.partitions == ["day-0", "day-1", "day-2"]
    assert watched.skipped == "2 shards are current; 2 wait (may still be being written)"
    for name in ("day-1", "day-3"):
        written = time.time() - 3600
        os.utime(watched.folder / f"{name}.jsonl", (written, written))
    assert watched.tick() == ["day-1", "day-3"]


def test_a_file_from_a_clock_that_goes_before_ours_does_not_wait_for_ever(watched: Watched) -> None:
    watched.recipe = recipe_over(watched.folder, settle_seconds=30)
    watched.write("day-3", "yes", age=-3600)
    assert watched.tick() == ["day-3"]


@pytest.mark.parametrize("harm", ["empty", "gone"])
def test_a_source_that_cannot_be_listed_withdraws_nothing_and_alerts_once(
    watched: Watched, alerts: list[Alert], harm: str
) -> None:
    for path in watched.folder.iterdir():
        path.unlink()
    if harm == "gone":
        watched.folder.rmdir()
    for _ in range(3):
        assert watched.tick() == []
        assert "cannot be listed, and no shard was left out" in str(watched.skipped)
    assert watched.partitions == ["day-0", "day-1", "day-2"]
    assert all(watched.rows(day) for day in watched.partitions)
    assert [alert.event for alert in alerts] == ["source"]

    watched.folder.mkdir(exist_ok=True)
    for day in ("day-0", "day-1", "day-2"):
        watched.write(day, "yes")
    assert watched.tick() == []
    watched.folder.rename(watched.folder.with_name("elsewhere"))
    watched.tick()
    assert len(alerts) == 2, "trouble that was over and came again is news"


def test_many_files_gone_at_once_are_doubted_once_and_go_when_a_person_follows_the_source(
    watched: Watched, alerts: list[Alert]
) -> None:
    for day in range(3, 6):
        watched.write(f"day-{day}", "yes")
    watched.make(*watched.tick())
    for day in range(2):
        (watched.folder / f"day-{day}.jsonl").unlink()
    for _ in range(3):
        assert watched.tick() == []
    assert len(watched.partitions) == 6
    assert [alert.text for alert in alerts] == [
        "2 of 6 shards are gone from the source, and none was left out: day-0, day-1; if that is meant, "
        "run `align run` or `align backfill`, which follow the source"
    ]
    assert follow_source(watched.instance, Workspace(watched.recipe, load_pools())) == ["day-0", "day-1"]
    bury(ArtifactStore().open(), watched.recipe.name, "shards", [Tombstone(id="day-1", at=now())])
    told = split_by_hand(Workspace(watched.recipe, load_pools()), ["day-0", "day-1"])
    assert told == (["day-0"], ["day-1"]), "gone from the source, and withdrawn"
    assert watched.partitions == [f"day-{day}" for day in range(2, 6)]
    assert watched.tick() == []
    assert watched.skipped == "4 shards are current"


def test_shards_of_an_older_code_version_wait_for_a_person_and_new_files_do_not(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = replace(STAGE, code_version=STAGE.code_version + 1)
    monkeypatch.setattr(shard_node, "STAGE", newer)
    watched.write("day-1", "maybe", age=60)
    watched.write("day-3", "yes")
    assert watched.tick() == ["day-3"]
    watched.make("day-3")
    assert watched.tick() == []
    wait = "1 shard is current; 3 are of an older code version and wait for `align upgrade --accept`"
    assert watched.skipped == wait
    (watched.folder / "day-2.jsonl").unlink()
    assert watched.tick() == [] and watched.partitions == ["day-0", "day-1", "day-3"], "what is gone goes all the same"

    store = ArtifactStore().open()
    moved = moved_stages([preference_shard(watched.recipe)], Upstream(store, "night"))
    assert moved == (Moved("preference_shard", STAGE.code_version, newer.code_version, ("day-0", "day-1")),)
    Upgrades(store, "night").accept(moved, "somebody", datetime.now(UTC))
    assert watched.tick() == ["day-0", "day-1"]
    watched.make("day-0", "day-1")
    assert watched.tick() == []
    assert watched.skipped == "3 shards are current"


def test_a_failed_shard_is_tried_twice_alerted_and_asked_for_again_when_it_is_corrected(
    watched: Watched, alerts: list[Alert]
) -> None:
    bad = watched.write("day-3")
    bad.write_text('{"prompt": "p", "chosen": "same", "rejected": "same"}\n', encoding="utf-8")
    for _ in range(2):
        assert watched.tick() == ["day-3"]
        with pytest.raises(BadInput, match="no valid preference row") as error:
            watched.make("day-3")
        watched.fail(str(error.value))
    for _ in range(3):
        assert watched.tick() == []
    (alert,) = alerts
    assert alert.event == "shard_failed"
    assert alert.text.startswith(f"failed and wait for a correction: day-3 ({bad}: no valid preference row")
    watched.write("day-3", "yes", age=60)
    assert watched.tick() == ["day-3"]
    watched.make("day-3")
    assert watched.tick() == []


def test_a_file_that_changes_while_it_is_read_is_read_again(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    read = shard_module.read_records

    def grows(url: str, *pinned: Any) -> Any:
        watched.write("day-3", "yes", "and more", age=60)
        return read(url, *pinned)

    watched.write("day-3", "yes")
    assert watched.tick() == ["day-3"]
    with monkeypatch.context() as patched:
        patched.setattr(shard_module, "read_records", grows)
        with pytest.raises(BadInput, match="has changed since it was pinned"):
            watched.make("day-3")
    assert watched.rows("day-3") is None
    assert watched.tick() == ["day-3"]
    watched.make("day-3")
    (made,) = [one for one in ArtifactStore().open().commits("preference_shard") if one.digest == watched.rows("day-3")]
    assert made.summary["rows"] == 2


def test_while_a_run_is_under_way_its_shard_is_not_asked_for_again(watched: Watched) -> None:
    watched.write("day-1", "maybe", age=60)
    assert watched.tick() == ["day-1"]
    tags = {"dagster/sensor_name": "night_source", "dagster/run_key": watched.run_keys[-1]}
    run = watched.instance.create_run_for_job(nothing, tags=tags, status=dg.DagsterRunStatus.STARTING)
    watched.write("day-1", "perhaps", age=30)
    assert watched.tick() == []
    watched.instance.delete_run(run.run_id)
    assert watched.tick() == ["day-1"]


@dg.job
def nothing() -> None:
    pass


def test_a_cursor_that_was_reset_or_damaged_asks_under_new_run_keys(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = iter([time.time() + 60, time.time() + 120])
    monkeypatch.setattr(cursor_module, "time", SimpleNamespace(time=lambda: next(later)))
    watched.write("day-3", "yes")
    assert watched.tick() == ["day-3"]
    for cursor in (None, "not a cursor"):
        watched.cursor = cursor
        assert watched.tick() == ["day-3"]


def test_two_recipes_on_one_source_do_not_disturb_each_other(watched: Watched) -> None:
    other = Watched(watched.instance, recipe_over(watched.folder, "sweep", split_into=1), watched.folder)
    assert other.tick() == ["day-0", "day-1", "day-2"]
    other.make("day-0")
    watched.write("day-1", "maybe", age=60)
    assert watched.tick() == ["day-1"]
    assert other.tick() == ["day-1", "day-2"]
    (watched.folder / "day-2.jsonl").unlink()
    watched.tick()
    assert (watched.rows("day-2"), watched.rows("day-0")) == (None, other.rows("day-0"))
    assert "day-2" in other.partitions
    other.tick()
    assert other.partitions == watched.partitions == ["day-0", "day-1"]


def test_one_unreadable_file_is_told_of_and_keeps_no_other_from_being_followed(
    watched: Watched, alerts: list[Alert], monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = shards_module.pin_file

    def refuse(url: str) -> SourceFile:
        if "day-1" in url:
            raise BadInput("cannot be read: permission denied", file="day-1.jsonl")
        return pin(url)

    monkeypatch.setattr(shards_module, "pin_file", refuse)
    watched.write("day-3", "yes")
    assert watched.tick() == ["day-3"]
    watched.tick()
    assert [alert.text for alert in alerts] == ["cannot be read: day-1.jsonl: cannot be read: permission denied"]
    assert watched.rows("day-1") is not None


def test_reading_much_new_content_goes_on_at_the_next_tick(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.write("day-3", "yes")
    clock = iter([0.0, 1.0, 2.0, 50.0, 51.0])
    with monkeypatch.context() as patched:
        patched.setattr(look_module, "time", SimpleNamespace(time=time.time, monotonic=lambda: next(clock)))
        assert watched.tick() == []
    assert watched.skipped == "2 shards are current; 2 wait (not read yet)"
    assert watched.tick() == ["day-3"]


def test_a_data_set_on_the_hub_is_followed_by_its_revision(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    revisions = iter(["a" * 40, "a" * 40, "b" * 40])

    def pin(source: PreferenceSource) -> DataSource:
        return DataSource(hub=source.hub, split="train", revision=next(revisions))

    monkeypatch.setattr(shards_module, "pin_hub", pin)
    data = watched.recipe.model_copy(update={"preferences": PreferenceSource(hub="team/prefs"), "name": "hub"})
    hub = Watched(watched.instance, data, watched.folder)
    assert hub.tick() == ["train"]
    node = preference_shard(data)
    key = node.stage.key(ShardRequest(hub=DataSource(hub="team/prefs", split="train", revision="a" * 40)))
    artifact = Artifact(kind=node.stage.kind, key=key, attempt="a", digest="d")
    ArtifactStore().open().write_ref(Ref(artifact=artifact), "hub", node.name, "train")
    assert hub.tick() == []
    assert hub.tick() == ["train"]


def test_a_withdrawn_row_asks_for_the_shard_that_holds_it_and_for_no_other(watched: Watched) -> None:
    store = ArtifactStore().open()
    folder = store.fetch(Upstream(store, "night")("preference_shard", watched.partitions[1]))
    bury(store, "night", "rows", [Tombstone(id=read_rows(folder / "rows.parquet")[0].row_id, at=now())])
    watched.write(watched.partitions[1], "yes", "one more")
    assert watched.tick() == [watched.partitions[1]]
    watched.make(watched.partitions[1])
    assert watched.tick() == []


def test_a_withdrawn_shard_goes_without_doubt_and_does_not_come_back_by_the_next_tick(watched: Watched) -> None:
    store = ArtifactStore().open()
    first, *others = watched.partitions
    for shard in (first, others[0]):
        bury(store, "night", "shards", [Tombstone(id=shard, at=now())])
    assert watched.tick() == []
    assert watched.partitions == others[1:]
    assert Upstream(store, "night").get("preference_shard", first) is None
    assert watched.tick() == []
    lift(store, "night", "shards", [first])
    assert watched.tick() == [first]
