"""What is erased is gone and said; its commit record, and everything that stands on it, is not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from alignment.store import Artifact, Commit, ErasedArtifact, Store
from alignment.store.erase import all_commits, current_erasure, erase, erasures, finish, remaining
from alignment.store.store import COMMIT_FILE
from tests.alignment.store.test_store import commit


def build(store: Store, digest: str = "d") -> Commit:
    with store.building("thing", "k"):
        attempt = store.begin("thing", "k")
        (attempt.path / "text.txt").write_text("somebody's words")
        (attempt.path / "ids.txt").write_text("1 2 3")
        return commit(store, attempt, digest)


def test_files_go_the_record_stays_and_a_reader_is_told_why(store: Store, tmp_path: Path) -> None:
    made = build(store)
    store.fetch(made.artifact)
    erase(store, made, ["text.txt"], "rows were withdrawn")
    assert store.find("thing", "k") is None, "whoever asks for this key makes it again"
    assert store.commit_of(made.artifact) == made
    assert store.read(made.artifact, "ids.txt") == b"1 2 3"
    for ask in (lambda: store.fetch(made.artifact), lambda: store.read(made.artifact, "text.txt")):
        with pytest.raises(ErasedArtifact, match=r"erased on 20.*: rows were withdrawn"):
            ask()
    assert not list((tmp_path / "cache").rglob("text.txt"))
    assert list(store.commits("thing")) == []
    assert list(all_commits(store, "thing")) == [made]


def test_it_can_be_made_again_and_both_results_stay_known(store: Store) -> None:
    made = build(store)
    erase(store, made, ["text.txt"], "gone")
    same = build(store)
    assert store.find("thing", "k") == same
    assert store.read(same.artifact, "text.txt") == b"somebody's words"
    assert (store.fetch(made.artifact) / "text.txt").exists(), "the same result serves who pinned the first"
    assert len(list(all_commits(store, "thing"))) == 1
    assert current_erasure(store, made.artifact) is None
    erase(store, same, ["text.txt"], "gone")
    other = build(store, digest="e")
    assert {commit.digest for commit in all_commits(store, "thing")} == {"d", "e"}
    assert store.commit_of(made.artifact).digest == "d"
    assert store.commit_of(other.artifact) == other
    assert store.read(made.artifact, "ids.txt") == b"1 2 3", "the next build has not swept away what was kept"


def test_an_erasure_cut_short_is_finished(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build(store)
    with monkeypatch.context() as patch:
        patch.setattr("alignment.store.erase._remove", lambda *_: None)
        erase(store, made, ["text.txt"], "gone")
    assert store.fs.exists(store.path("thing", "k", COMMIT_FILE))
    (half,) = erasures(store, "thing")
    assert len(remaining(store, half)) == 1
    finish(store, half)
    assert remaining(store, half) == []
    assert store.find("thing", "k") is None


def test_a_key_that_is_being_built_is_not_claimed(store: Store) -> None:
    inside, leave = threading.Event(), threading.Event()

    def builder() -> None:
        with store.building("thing", "k"):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=builder)
    thread.start()
    try:
        assert inside.wait(60)
        with store.unless_building("thing", "k") as free:
            assert not free
        with store.unless_building("thing", "other") as free:
            assert free
    finally:
        leave.set()
        thread.join()
    with store.unless_building("thing", "k") as free:
        assert free


def test_what_was_never_there_is_not_called_erased(store: Store) -> None:
    with pytest.raises(LookupError) as raised:
        store.fetch(Artifact(kind="thing", key="none", attempt="a", digest="d"))
    assert not isinstance(raised.value, ErasedArtifact)
