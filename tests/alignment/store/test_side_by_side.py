"""Records read side by side are those that are read one after the other, and files come to a machine once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alignment.store import Commit, MissingArtifact, Store
from alignment.store.erase import erase
from alignment.store.store import COMMIT_FILE, commits_of, readable_commits
from tests.alignment.store.test_store import build


def test_records_come_in_order_those_of_what_was_erased_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    erased = build(store)
    erase(store, erased, ["sub/file.txt"], "gone")
    standing, other = build(store, digest="e"), build(store, key="other")
    with monkeypatch.context() as patch:
        patch.setattr(store, "find", lambda *_: pytest.fail("one after the other"))
        assert commits_of(store, [other.artifact, standing.artifact, other.artifact]) == [other, standing, other]
    assert commits_of(store, [erased.artifact, standing.artifact]) == [erased, standing]
    assert commits_of(store, []) == []
    with pytest.raises(MissingArtifact):
        commits_of(store, [standing.artifact.model_copy(update={"digest": "never", "attempt": "none"})])


def test_what_cannot_be_read_is_left_out_of_a_kind_and_logged(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    erased = build(store)
    erase(store, erased, ["sub/file.txt"], "gone")
    build(store, digest="e")
    assert {commit.digest for commit in readable_commits(store, "thing")} == {"d", "e"}
    assert caplog.messages == []
    store.replace(store.path("thing", "k", COMMIT_FILE), b"no record")
    assert readable_commits(store, "thing") == [erased]
    assert caplog.messages == ["thing: 1 of its records cannot be read and are left out"]


def test_the_ranks_of_a_machine_load_an_artifact_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(store)
    download, loaded, start = Store._download, list[str](), threading.Barrier(4)

    def counted(rank: Store, commit: Commit, remote: str, folder: Path) -> None:
        loaded.append(remote)
        download(rank, commit, remote, folder)

    def ask(_: int) -> Path:
        rank = Store(store.url, tmp_path / "machine")
        start.wait()
        return rank.fetch(made.artifact, deep="once")

    monkeypatch.setattr(Store, "_download", counted)
    with ThreadPoolExecutor(4) as ranks:
        (folder,) = set(ranks.map(ask, range(4)))
    assert (folder / "sub" / "file.txt").read_text() == "hello"
    assert len(loaded) == (0 if store.is_local else 1)
