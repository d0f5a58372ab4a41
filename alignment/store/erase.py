"""Erasing files of a committed artifact on purpose, so that its commit record, and every lineage through it, stands.

The record takes the marker's place: nobody finds the artifact any more, whoever asks for its key makes it again,
and what was pinned to it is told when and why its files went.
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
    """Erases the named files of a committed artifact; hold its key meanwhile. Safe to repeat after a crash.

    `instead` are small files left beside the others, for what lineage still has to know.
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
    """Removes what an erasure names, wherever a copy of it lies."""
    commit = erasure.commit
    marker = store.find(commit.kind, commit.key)
    if marker is not None and marker.attempt == commit.attempt:  # a crash came between the record and the marker
        _remove(store, store.path(commit.kind, commit.key, COMMIT_FILE))
    for path in remaining(store, erasure):
        _remove(store, path)
    shutil.rmtree(store.cache / "artifacts" / commit.kind / commit.key / commit.attempt, ignore_errors=True)


def remaining(store: Store, erasure: Erasure) -> list[str]:
    """Files that an erasure names and that are still there."""
    commit = erasure.commit
    folder = PurePosixPath(store.path(commit.kind, commit.key, commit.attempt))
    return [path for name in erasure.files if store.fs.exists(path := str(folder / name))]


def gone(store: Store, artifact: Artifact) -> Erasure | None:
    """What was erased of an artifact and was not made again since."""
    commit = store.find(artifact.kind, artifact.key)
    return None if commit is not None and commit.digest == artifact.digest else store.erasure_of(artifact)


def erasures(store: Store, kind: str) -> Iterator[Erasure]:
    """Every erasure record of a kind, in no particular order."""
    for path in store.fs.glob(store.path(kind, "*", f"{ERASED}*.json")):
        yield read_record(Erasure, store.fs.cat_file(str(path)), str(path))


def all_commits(store: Store, kind: str) -> Iterator[Commit]:
    """Every commit record of a kind, those of erased artifacts too; a result that was made again counts once."""
    erased = [erasure.commit for erasure in erasures(store, kind)]
    yield from {(commit.key, commit.digest): commit for commit in [*erased, *store.commits(kind)]}.values()


def _remove(store: Store, path: str) -> None:
    try:
        store.fs.rm_file(path)
    except FileNotFoundError:
        return  # another process was faster


# What builds that run right now stand on: nothing of it may be erased under their hands.

REQUEST = "request.json"  # first file of every attempt


def keys_in_use(store: Store) -> set[str]:
    """Keys of all artifacts that running builds pin, directly or through what those were made from.

    A build is known by its request in its attempt, and by the lock that its process holds. Where the store is remote
    both are beside the cache, so only this machine's are seen.
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
            continue  # it is being written, or was discarded just now


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
