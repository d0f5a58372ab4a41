"""Attempts that nobody committed and finished work are leftovers; what is in use is none."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from alignment.store import Artifact, Commit, Ref, Store
from alignment_dags.retention.items import DAY, leftovers, remove


def test_attempts_that_died_and_work_that_is_finished_are_leftovers(store: Store, made: Callable[..., Commit]) -> None:
    done = made("thing", "done")
    for key in ("done", "unfinished"):
        (store.work_path("thing", key) / "state").write_text("12345")
    dead = store.begin("thing", "dead")
    (dead.path / "half").write_text("half")
    found = list(leftovers(store))
    assert [(one.key, one.bytes, one.why) for one in found] == [("done", 5, "the work folder of a finished build")]
    later = sorted((one.key, one.bytes) for one in leftovers(store, now=time.time() + DAY + 60))
    assert later == [("dead", 4), ("done", 5)]
    assert store.find("thing", "done") == done


def test_small_files_that_their_writer_never_renamed_are_leftovers_after_a_day(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    ref = Ref(artifact=Artifact(kind="thing", key="k", attempt="0" * 12, digest="d" * 64))
    store.write_ref(ref, "small", "policy_checkpoint")
    store.write_ref(ref, "small", "preference_shard", "one.json.0123abcd")  # a shard's name, not a file's
    half = [f"{store.ref_path('small', *place)}.0123abcd" for place in (("policy_checkpoint",), ("evals", "gsm8k"))]
    half.append(store.path("withdrawn", "small", "rows", "id.json.0123abcd"))
    for path in half:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("{")
    assert list(leftovers(store)) == []
    found = list(leftovers(store, now=time.time() + DAY + 60))
    assert {one.path for one in found} == set(half)
    for one in found:
        remove(store, one)
    assert list(leftovers(store, now=time.time() + DAY + 60)) == []
    assert store.read_ref("small", "policy_checkpoint") == store.read_ref(
        "small", "preference_shard", "one.json.0123abcd"
    )


def test_the_attempt_of_a_build_that_writes_nothing_for_days_is_no_leftover(
    store: Store, made: Callable[..., Commit]
) -> None:
    week = time.time() + 7 * DAY
    with store.building("policy_checkpoint", "k"):
        attempt = store.begin("policy_checkpoint", "k")
        (attempt.path / "request.json").write_text("{}")
        assert list(leftovers(store, now=week)) == []
    (found,) = leftovers(store, now=week)
    with store.building("policy_checkpoint", "k"):
        again = made("policy_checkpoint", "k")
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
