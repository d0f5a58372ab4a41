"""Records read side by side are those that are read one after the other."""

from __future__ import annotations

import pytest

from alignment.store import MissingArtifact, Store
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
