"""Erases files of a committed artifact on purpose, and keeps its commit record, so that every lineage stays complete.

An erasure record takes the place of the commit marker. The artifact is then no longer found by its key, so a request
for the key makes it again. A reader of a pinned pointer gets an error that says when and why the files were erased.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from alignment.errors import MissingArtifact
from alignment.store.commit import STORE_FORMAT, Artifact, Commit, Erasure, read_record
from alignment.store.store import COMMIT_FILE, ERASED, Store


def erase(
    store: Store, commit: Commit, files: Iterable[str], why: str, instead: Mapping[str, bytes] | None = None
) -> Erasure:
    """Erases the named files of a committed artifact. Safe to repeat after a crash.

    The caller holds the artifact's key (`Store.building` or `Store.unless_building`). `instead` are small files (name
    to content) that are added, for what lineage still needs.
    """
    for name, data in (instead or {}).items():
        store.replace(store.path(commit.kind, commit.key, commit.attempt, name), data)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    erasure = Erasure(format=STORE_FORMAT, commit=commit, at=at, why=why, files=sorted(files))
    record = store.path(commit.kind, commit.key, f"{ERASED}{commit.attempt}.json")
    store.replace(record, erasure.model_dump_json(indent=1).encode())
    _remove(store, store.path(commit.kind, commit.key, COMMIT_FILE))
    finish(store, erasure)
    return erasure


def finish(store: Store, erasure: Erasure) -> None:
    """Removes the files that an erasure names, from the store and from the local cache."""
    commit = erasure.commit
    marker = store.find(commit.kind, commit.key)
    if marker is not None and marker.attempt == commit.attempt:  # after a crash the marker may still be there
        _remove(store, store.path(commit.kind, commit.key, COMMIT_FILE))
    for path in remaining(store, erasure):
        _remove(store, path)
    shutil.rmtree(store.cache / "artifacts" / commit.kind / commit.key / commit.attempt, ignore_errors=True)


def remaining(store: Store, erasure: Erasure) -> list[str]:
    """Paths of the files that an erasure names and that still exist."""
    commit = erasure.commit
    folder = PurePosixPath(store.path(commit.kind, commit.key, commit.attempt))
    return [path for name in erasure.files if store.fs.exists(path := str(folder / name))]


def current_erasure(store: Store, artifact: Artifact) -> Erasure | None:
    """The erasure of an artifact that was not made again since; None for an artifact with all its files."""
    commit = store.find(artifact.kind, artifact.key)
    return None if commit is not None and commit.digest == artifact.digest else store.erasure_of(artifact)


def erasures(store: Store, kind: str) -> Iterator[Erasure]:
    """Every erasure record of a kind, in no particular order."""
    for path in store.matching(store.path(kind), f"*/{ERASED}*.json"):
        yield read_record(Erasure, store.fs.cat_file(path), path)


def all_commits(store: Store, kind: str) -> Iterator[Commit]:
    """Every commit record of a kind, also of erased artifacts; a result that was made again is given once."""
    erased = [erasure.commit for erasure in erasures(store, kind)]
    yield from {(commit.key, commit.digest): commit for commit in [*erased, *store.commits(kind)]}.values()


def _remove(store: Store, path: str) -> None:
    try:
        store.fs.rm_file(path)
    except FileNotFoundError:
        return  # another process was faster


# The artifacts that running builds read: none of them may be erased.

REQUEST = "request.json"  # first file of every attempt


def keys_in_use(store: Store) -> set[str]:
    """Keys of all artifacts that running builds pin, and of everything that those artifacts were made from.

    A running build has its request in the folder of its attempt, and its process holds the lock of the key. With a
    remote store both are beside the cache, so only builds on this machine are seen.
    """
    waiting = [artifact for request in _running(store) for artifact in _pinned(request)]
    seen: set[str] = set()
    while waiting:
        artifact = waiting.pop()
        if artifact.key in seen:
            continue
        seen.add(artifact.key)
        try:
            waiting.extend(store.commit_of(artifact).inputs.values())
        except MissingArtifact:
            continue
    return seen


def _running(store: Store) -> Iterator[Any]:
    root = Path(store.root) if store.is_local else store.cache / "attempts"
    for path in root.glob(f"*/*/*/{REQUEST}"):
        kind, key = path.parts[-4], path.parts[-3]
        if store.is_local and (path.parents[1] / COMMIT_FILE).exists():
            continue
        with store.unless_building(kind, key) as free:
            if free:
                continue  # its builder died
        try:
            yield json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # the request is still being written, or the attempt was just discarded


def _pinned(value: Any) -> Iterator[Artifact]:
    if isinstance(value, dict):
        try:
            yield Artifact.model_validate(value)
        except ValidationError:
            for item in value.values():
                yield from _pinned(item)
    elif isinstance(value, list):
        for item in value:
            yield from _pinned(item)
