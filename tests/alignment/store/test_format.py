"""A store says which form its records have: older ones are read, newer ones are refused with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from alignment.errors import CorruptArtifact, NewerFormat
from alignment.store import Artifact, Commit, Erasure, Store
from alignment.store.commit import STORE_FORMAT
from alignment.store.erase import erase, erasures
from alignment.store.store import COMMIT_FILE, ERASED, commits_of, readable_commits


def build(store: Store, key: str = "k") -> Commit:
    attempt = store.begin("thing", key)
    (attempt.path / "file.txt").write_text("hello")
    return store.commit(
        attempt,
        digest="d",
        stage="thing",
        code_version=1,
        inputs={},
        summary={},
        environment={},
        started_at="2026-01-01T00:00:00+00:00",
        seconds=0.0,
    )


def rewrite(store: Store, path: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    store.replace(path, json.dumps(change(json.loads(store.fs.cat_file(path)))).encode())


def newer(record: dict[str, Any]) -> dict[str, Any]:
    """As a later version may write it: another format, another field, one field gone."""
    return {name: value for name, value in record.items() if name != "kind"} | {"format": STORE_FORMAT + 1, "new": []}


REFUSAL = (
    rf"k/_.*\.json: made by a newer version of alignment-dags \(store format {STORE_FORMAT + 1}, "
    rf"this one reads up to {STORE_FORMAT}\): upgrade"
)


def test_a_record_says_its_format_and_one_that_does_not_has_the_first(store: Store) -> None:
    made = build(store)
    path = store.path("thing", "k", COMMIT_FILE)
    assert json.loads(store.fs.cat_file(path))["format"] == STORE_FORMAT
    rewrite(store, path, lambda record: {name: value for name, value in record.items() if name != "format"})
    found = store.find("thing", "k")
    assert found is not None and found.format == 1
    assert found == made.model_copy(update={"format": 1})
    assert store.fetch(made.artifact).is_dir()


@pytest.mark.parametrize(
    "read",
    [
        lambda store, artifact: store.find("thing", "k"),
        lambda store, artifact: store.fetch(artifact),
        lambda store, artifact: list(store.commits("thing")),
        lambda store, artifact: commits_of(store, [artifact]),
        lambda store, artifact: build(store),
    ],
    ids=["find", "fetch", "commits", "commits_of", "commit"],
)
def test_a_commit_record_of_a_newer_version_is_refused_wherever_it_is_read(
    store: Store, read: Callable[[Store, Artifact], Any]
) -> None:
    made = build(store)
    rewrite(store, store.path("thing", "k", COMMIT_FILE), newer)
    with pytest.raises(NewerFormat, match=REFUSAL):
        read(store, made.artifact)


def test_an_erasure_record_of_a_newer_version_is_refused_too(store: Store) -> None:
    made = build(store)
    erase(store, made, ["file.txt"], "asked for")
    path = store.path("thing", "k", f"{ERASED}{made.attempt}.json")
    assert json.loads(store.fs.cat_file(path))["format"] == STORE_FORMAT
    rewrite(store, path, lambda record: record | {"commit": newer(record["commit"])})
    with pytest.raises(NewerFormat, match=REFUSAL):
        store.erasure_of(made.artifact)
    with pytest.raises(NewerFormat, match=REFUSAL):
        list(erasures(store, "thing"))


def test_what_counts_only_readable_records_leaves_newer_ones_out(store: Store) -> None:
    build(store, "k")
    other = build(store, "other")
    rewrite(store, store.path("thing", "k", COMMIT_FILE), newer)
    assert readable_commits(store, "thing") == [other]


@pytest.mark.parametrize("record", ['{"format": 0}', '{"format": "x"}', "[]", "{"])
@pytest.mark.parametrize(("kind", "name"), [(Commit, COMMIT_FILE), (Erasure, f"{ERASED}a.json")])
def test_a_record_that_is_none_is_corrupt_and_not_newer(store: Store, kind: type, name: str, record: str) -> None:
    store.replace(store.path("thing", "k", name), record.encode())
    with pytest.raises(CorruptArtifact, match="not a") as told:
        store.find("thing", "k") if kind is Commit else list(erasures(store, "thing"))
    assert not isinstance(told.value, NewerFormat)
