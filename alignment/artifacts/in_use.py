"""What builds that run right now stand on: nothing of it may be erased under their hands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alignment.artifacts.commit import Artifact
from alignment.artifacts.errors import MissingArtifact
from alignment.artifacts.store import COMMIT_FILE, Store

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
