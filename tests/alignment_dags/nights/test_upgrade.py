"""Nights over a store of an older version: they wait for a person's acceptance, and say so once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from alignment.recipe import Recipe
from alignment.store import Ref
from alignment_dags.nights.decide import GRACE
from alignment_dags.nights.night import Night
from alignment_dags.nights.records import NightBook
from alignment_dags.nights.tick import Ticked, tick
from alignment_dags.run.shards import drop
from alignment_dags.run.upgrade import Moved, Upgrades, moved_stages
from alignment_dags.run.workspace import Workspace
from assets.building.node import Node
from assets.graph import nodes_of
from resources.home import ensure_home
from resources.pools import load_pools
from resources.store import ArtifactStore
from tests.alignment_dags.nights.small import DAY, TWO

MADE = ("base_model", "sft_dataset", "sft_checkpoint", "preference_shard", "reference_logprobs")


class Versions:
    """A recipe whose first stages were made by hand, and nights of versions of the code that come after each other."""

    def __init__(self, instance: dg.DagsterInstance, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.instance = instance
        self.folder = folder
        self.caplog = caplog
        self.store = ArtifactStore().open()
        self.raised: dict[str, int] = {}
        self.now = TWO
        for day in ("day-0", "day-1"):
            row = {"prompt": day, "chosen": "yes", "rejected": "no"}
            (folder / f"{day}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        micro = {"embedded": "micro"}
        preferences = {"files": [str(folder)], "settle_seconds": 0}
        settings = {"name": "small", "base_model": micro, "sft": {"dataset": micro}, "preferences": preferences}
        self.recipe = Recipe.model_validate(settings)
        self.make(*MADE)

    @property
    def workspace(self) -> Workspace:
        """The recipe under this version of the code."""
        pools = load_pools()
        workspace = Workspace(self.recipe, pools)
        workspace.__dict__["nodes"] = tuple(self._raised(node) for node in nodes_of(self.recipe, pools))
        return workspace

    def _raised(self, node: Node) -> Node:
        more = self.raised.get(node.name, 0)
        return replace(node, stage=replace(node.stage, code_version=node.stage.code_version + more))

    def make(self, *names: str) -> None:
        """Commits what a stage would make, empty, under the key that it has now."""
        workspace = self.workspace
        for node in workspace.nodes:
            if node.name not in names:
                continue
            upstream = workspace.upstream()
            shards = list(upstream.shards(self.recipe)) if node.partitioned else [None]
            for shard in shards:
                key = node.stage.key(node.request(upstream, shard))
                commit = self.store.commit(
                    self.store.begin(node.stage.kind, key),
                    digest=f"{node.name} {shard}",
                    stage=node.stage.name,
                    code_version=node.stage.code_version,
                    inputs={},
                    summary={},
                    environment={"recipe": "small"},
                    started_at="2026-11-19T02:00:00+00:00",
                    seconds=30.0,
                )
                self.store.write_ref(Ref(artifact=commit.artifact, mlflow_run_id="m"), "small", node.name, shard)

    def moved(self) -> tuple[Moved, ...]:
        return moved_stages(self.workspace.nodes, self.workspace.upstream())

    def night(self) -> None:
        """A day later another night is due."""
        self.now += DAY
        night = Night(recipe="small", scheduled_at=self.now, recorded_at=self.now, deadline_minutes=120)
        assert NightBook(self.store, "small").add(night)

    def tick(self, idle: timedelta | None = None) -> tuple[Ticked, list[str]]:
        """One look, and the alerts that it sent."""
        self.caplog.clear()
        ticked = tick(self.instance, self.workspace, self.now, None if idle is None else self.now - idle)
        return ticked, [one.message for one in self.caplog.records if one.name == "alignment_dags.alerts"]

    def accept(self, now: datetime | None = None) -> None:
        Upgrades(self.store, "small").accept(self.moved(), "somebody", now or self.now)


@pytest.fixture
def versions(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Versions]:
    ensure_home()
    (folder := tmp_path / "source").mkdir()
    with dg.DagsterInstance.ephemeral() as instance:
        yield Versions(instance, folder, caplog)


def outcomes(versions: Versions) -> list[str]:
    return [night.outcome for night in NightBook(versions.store, "small").latest()]


def test_nights_wait_for_the_acceptance_with_one_alert_and_then_go_on(versions: Versions) -> None:
    versions.raised = {"preference_shard": 1, "reference_logprobs": 2}
    versions.night()
    ticked, alerts = versions.tick()
    assert not ticked.requests and "waits for `align upgrade --accept`: this version makes anew" in ticked.reason
    (alert,) = alerts
    assert alert.startswith("small: this version makes anew preference_shard (code version ")
    assert "2 artifacts), reference_logprobs (code version" in alert
    assert versions.tick() == (ticked, [])

    for _ in range(2):
        versions.night()
        ticked, alerts = versions.tick()
        assert not ticked.requests and alerts == [], "neither of what waits nor of the nights that are missed for it"
    assert outcomes(versions) == ["waiting", "missed", "missed"]
    missed = list(NightBook(versions.store, "small").latest())[-1]
    assert missed.reason.endswith("came before it began; it waited for `align upgrade --accept`")

    versions.now += timedelta(hours=8)  # long after the deadline, and shards are made all the same
    versions.accept()
    ticked, alerts = versions.tick(idle=2 * GRACE)
    assert {request.job_name for request in ticked.requests} == {"small_shards"}
    assert alerts == [] and outcomes(versions)[0] == "running"


def test_a_second_move_asks_again_and_what_was_accepted_stays_so(versions: Versions) -> None:
    versions.raised = {"preference_shard": 1}
    versions.accept()
    versions.night()
    assert versions.tick(idle=2 * GRACE)[0].requests

    versions.raised = {"preference_shard": 1, "reference_logprobs": 1}
    ticked, alerts = versions.tick(idle=2 * GRACE)
    assert not ticked.requests and "preference_shard" not in ticked.reason and "reference_logprobs" in ticked.reason
    assert len(alerts) == 1
    versions.raised["preference_shard"] = 2
    ticked, alerts = versions.tick(idle=2 * GRACE)
    assert not ticked.requests and "preference_shard" in ticked.reason
    assert len(alerts) == 1
    versions.accept()
    assert versions.tick(idle=2 * GRACE)[0].requests
    versions.store.replace(versions.store.path("upgrades", "small", "accepted.json"), b"{")
    assert not versions.tick(idle=2 * GRACE)[0].requests, "a record that cannot be read accepts nothing"


def test_a_base_that_moves_is_not_made_before_the_acceptance(versions: Versions) -> None:
    versions.raised = {"sft_dataset": 1}
    versions.night()
    ticked, _ = versions.tick()
    assert not ticked.requests and "sft_dataset (code version" in ticked.reason
    versions.accept()
    (request,) = versions.tick()[0].requests
    assert request.job_name == "small_base"


def test_what_a_person_made_by_hand_needs_no_acceptance_and_a_missed_night_is_told_of_again(versions: Versions) -> None:
    versions.raised = {"preference_shard": 1, "reference_logprobs": 1}
    versions.night()
    assert len(versions.tick()[1]) == 1
    (versions.folder / "day-1.jsonl").unlink()
    drop(versions.instance, versions.store, "small", ["day-1"])
    assert versions.store.read_ref("small", "reference_logprobs", "day-1") is not None
    versions.make("preference_shard", "reference_logprobs")
    assert versions.moved() == (), "nor is what is kept of a withdrawn shard in the way"
    ticked, _ = versions.tick()
    assert ticked.requests and not Upgrades(versions.store, "small").waits
    versions.store.fs.rm(versions.store.path("nights"), recursive=True)
    versions.night()
    versions.night()
    (alert,) = versions.tick()[1]
    assert alert.endswith(" (alert night_missed)")


def test_only_stages_of_an_older_version_are_told_with_their_artifacts(versions: Versions) -> None:
    assert versions.moved() == ()
    versions.raised = {"base_model": -1, "preference_shard": 2, "policy_checkpoint": 1}
    shard = next(node for node in versions.workspace.nodes if node.name == "preference_shard").stage.code_version
    everything = Moved("preference_shard", shard - 2, shard, ("day-0", "day-1"))
    assert versions.moved() == (everything,), "no policy was made, and a newer base model stands"
    upstream = versions.workspace.upstream()
    current = {"preference_shard": ["day-0"]}
    (rest,) = moved_stages(versions.workspace.nodes, upstream, current)
    assert rest.shards == ("day-1",)

    ref = versions.store.read_ref("small", "preference_shard", "day-0")
    assert ref is not None
    versions.store.fs.rm(versions.store.path("preference_shard", ref.artifact.key), recursive=True)
    (rest,) = versions.moved()
    assert rest.shards == ("day-1",), "a ref to nothing is no reason to fail"
