"""Retention: what is current, champion, aliased, recent or in use keeps its weights; the rest keeps its record."""

from __future__ import annotations

import json
import os
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Commit, ErasedArtifact, Erasure, Ref, Store
from alignment.artifacts.erase import erase, remaining
from alignment.artifacts.in_use import keys_in_use
from alignment_dags.gc import carry_out, plan_of
from alignment_dags.gc_checkpoints import spent_checkpoints
from alignment_dags.gc_items import Plan
from alignment_dags.gc_leftovers import DAY, leftovers, remove


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return Store(url, cache=tmp_path / "cache")


def made(store: Store, kind: str, key: str, minute: int = 0, recipe: str = "r", **rest: Any) -> Commit:
    attempt = store.begin(kind, key)
    for name in ("model.safetensors", "training_rows.parquet", "request.json"):
        (attempt.path / name).write_text(f"{name} of {key}")
    return store.commit(
        attempt,
        digest=f"digest-{key}",
        stage=kind,
        code_version=1,
        inputs=rest.get("inputs", {}),
        summary=rest.get("summary", {}),
        environment={"recipe": recipe},
        started_at=f"2026-01-01T00:{minute:02d}:00+00:00",
        seconds=0.0,
    )


def policies(store: Store, count: int, recipe: str = "r") -> list[Commit]:
    """Policies, oldest first, each on an SFT checkpoint of its own."""
    return [
        made(
            store,
            "policy_checkpoint",
            f"{recipe}-policy-{number}",
            number,
            recipe,
            inputs={"checkpoint": made(store, "sft_checkpoint", f"{recipe}-sft-{number}", number, recipe).artifact},
        )
        for number in range(count)
    ]


def spent(store: Store, keep: int, recipes: list[str] | None = None, aliased: tuple[str, ...] = ()) -> list[str]:
    doomed = spent_checkpoints(store, recipes, keep, aliased, keys_in_use(store))
    assert all(one.files == ("model.safetensors",) for one in doomed)
    return sorted(one.commit.key for one in doomed)


def test_the_last_policies_of_each_recipe_stay_with_the_sft_checkpoints_below_them(store: Store) -> None:
    policies(store, 3)
    policies(store, 2, "other")
    assert spent(store, 2) == ["r-policy-0", "r-sft-0"]
    assert spent(store, 1) == ["other-policy-0", "other-sft-0", "r-policy-0", "r-policy-1", "r-sft-0", "r-sft-1"]
    assert spent(store, 1, ["other"]) == ["other-policy-0", "other-sft-0"]


def test_current_champion_and_aliased_policies_stay_however_old(store: Store) -> None:
    old = policies(store, 5)
    store.write_ref(Ref(artifact=old[0].artifact), "r", "policy_checkpoint")
    registration = made(
        store,
        "registered_model",
        "registration",
        inputs={"policy": old[1].artifact},
        summary={"registered": True, "model": "m", "version": "1"},
    )
    store.write_ref(Ref(artifact=registration.artifact), "r", "registered_model")
    sft = made(store, "sft_checkpoint", "next-sft")
    store.write_ref(Ref(artifact=sft.artifact), "r", "sft_checkpoint")
    kept_by_alias = (old[2].digest,)
    assert spent(store, 0, aliased=kept_by_alias) == ["r-policy-3", "r-policy-4", "r-sft-3", "r-sft-4"]


def test_refused_candidates_do_not_push_out_what_a_person_may_go_back_to(store: Store) -> None:
    made_ones = policies(store, 9)
    for number, registered in ((0, True), (1, True), (2, True), *((number, False) for number in range(3, 9))):
        made(
            store,
            "registered_model",
            f"registration-{number}",
            number,
            inputs={"policy": made_ones[number].artifact},
            summary={"registered": registered, "model": "m", "version": str(number)},
        )
    gone = [0, 3, 4, 5, 6]
    assert spent(store, 2) == sorted(f"r-{kind}-{number}" for kind in ("policy", "sft") for number in gone)


def test_weights_go_and_all_else_of_a_checkpoint_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    old, _ = policies(store, 2)
    plan = plan_of(store, ["r"], everything=True, keep=1)
    assert plan.bytes == sum(one.bytes for one in plan.doomed) > 0
    assert store.find("policy_checkpoint", old.key) == old, "listing removes nothing"
    carry_out(store, plan)
    assert store.commit_of(old.artifact) == old
    assert store.read(old.artifact, "training_rows.parquet") == b"training_rows.parquet of r-policy-0"
    with pytest.raises(ErasedArtifact, match="not among the last 1 policies of r"):
        store.fetch(old.artifact)
    assert plan_of(store, ["r"], everything=True, keep=1).doomed == []


def test_what_a_running_build_pins_stays(store: Store) -> None:
    old, _ = policies(store, 2)
    with store.building("responses", "k"):
        attempt = store.begin("responses", "k")
        request = {"checkpoint": old.artifact.model_dump(), "suites": {}}
        (attempt.path / "request.json").write_text(json.dumps(request))
        assert keys_in_use(store) == {"r-policy-0", "r-sft-0"}
        assert spent(store, 1) == []
    assert spent(store, 1) == ["r-policy-0", "r-sft-0"], "its builder has ended"


def test_a_key_that_is_being_built_is_left_alone(store: Store, home: Path) -> None:
    old, _ = policies(store, 2)
    plan = plan_of(store, ["r"], everything=True, keep=1)
    with store.building("policy_checkpoint", old.key):
        busy = carry_out(store, plan)
    assert busy == [("policy_checkpoint", old.key)]
    assert store.find("policy_checkpoint", old.key) == old


def test_what_came_into_use_since_the_plan_was_made_stays(store: Store, home: Path) -> None:
    old, _ = policies(store, 2)
    plan = plan_of(store, ["r"], everything=True, keep=1)
    store.write_ref(Ref(artifact=old.artifact), "r", "policy_checkpoint")
    assert sorted(carry_out(store, plan)) == [("policy_checkpoint", "r-policy-0"), ("sft_checkpoint", "r-sft-0")]
    assert store.find("policy_checkpoint", old.key) == old


def test_a_half_done_erasure_is_finished_only_if_nothing_stands_on_it_again(store: Store) -> None:
    (old,) = policies(store, 1)
    half = Erasure(commit=old, at="2026-01-01", why="spent", files=["model.safetensors"])
    record = store.path(old.kind, old.key, f"_ERASED-{old.attempt}.json")
    store.replace(record, half.model_dump_json().encode())
    store.write_ref(Ref(artifact=old.artifact), "r", "policy_checkpoint")
    assert carry_out(store, Plan()) == [("policy_checkpoint", old.key)]
    assert (store.fetch(old.artifact) / "model.safetensors").is_file()
    store.remove_ref("r", "policy_checkpoint")
    assert carry_out(store, Plan()) == []
    assert remaining(store, half) == []


def test_a_ref_to_what_was_erased_goes_so_that_it_counts_as_behind(store: Store) -> None:
    old, new = policies(store, 2)
    for recipe, commit in (("r", old), ("other", new)):
        store.write_ref(Ref(artifact=commit.artifact), recipe, "policy_checkpoint")
    erase(store, old, ["model.safetensors"], "spent")
    carry_out(store, Plan())
    assert store.read_ref("r", "policy_checkpoint") is None
    assert store.read_ref("other", "policy_checkpoint") is not None


def test_attempts_that_died_and_work_that_is_finished_are_leftovers(store: Store) -> None:
    done = made(store, "thing", "done")
    for key in ("done", "unfinished"):
        (store.work_path("thing", key) / "state").write_text("12345")
    dead = store.begin("thing", "dead")
    (dead.path / "half").write_text("half")
    found = list(leftovers(store))
    assert [(one.key, one.bytes, one.why) for one in found] == [("done", 5, "the work folder of a finished build")]
    later = sorted((one.key, one.bytes) for one in leftovers(store, now=time.time() + DAY + 60))
    assert later == [("dead", 4), ("done", 5)]
    assert store.find("thing", "done") == done


def test_the_attempt_of_a_build_that_writes_nothing_for_days_is_no_leftover(store: Store) -> None:
    week = time.time() + 7 * DAY
    with store.building("policy_checkpoint", "k"):
        attempt = store.begin("policy_checkpoint", "k")
        (attempt.path / "request.json").write_text("{}")
        assert list(leftovers(store, now=week)) == []
    (found,) = leftovers(store, now=week)
    with store.building("policy_checkpoint", "k"):
        again = made(store, "policy_checkpoint", "k")
    for left in (found, replace(found, path=store.path("policy_checkpoint", "k", again.attempt), attempt=True)):
        remove(store, left)
    assert not attempt.path.exists()
    assert (store.fetch(again.artifact) / "request.json").is_file(), "what was committed since is none any more"


def test_work_that_nobody_went_on_with_for_a_week_goes_unless_a_next_run_needs_it(store: Store) -> None:
    for key in ("superseded", "resumable", "running"):
        (store.work_path("policy_checkpoint", key) / "state").write_text("12345")
    assert list(leftovers(store, now=time.time() + 6 * DAY)) == []
    with store.building("policy_checkpoint", "running"):
        found = list(leftovers(store, time.time() + 8 * DAY, ["resumable"]))
    assert [(one.key, one.bytes) for one in found] == [("superseded", 5)]


def test_an_attempt_still_written_to_is_no_leftover(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    slow = store.begin("thing", "slow")
    (slow.path / "first").write_text("a")
    os.utime(slow.path / "first", (1, 1))
    (slow.path / "second").write_text("b")
    assert list(leftovers(store)) == []


def test_refs_tombstones_and_caches_are_no_leftovers(store: Store) -> None:
    artifact = Artifact(kind="thing", key="k", attempt="a", digest="d")
    store.write_ref(Ref(artifact=artifact), "r", "preference_shard", "0123456789ab")
    store.replace(store.path("withdrawn", "r", "rows", "0123456789ab"), b"{}")
    store.replace(store.path("cache", "sequence_keys", "0123456789ab"), b"x")
    assert list(leftovers(store, now=time.time() + 9 * DAY)) == []
