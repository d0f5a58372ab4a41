"""Many commit records read side by side: of thousands on a remote store, one after the other takes minutes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from alignment.artifacts.commit import Artifact, Commit, Erasure
from alignment.artifacts.store import COMMIT_FILE, ERASED, Store

Record = TypeVar("Record", bound=BaseModel)

log = logging.getLogger(__name__)


def commits_of(store: Store, artifacts: Iterable[Artifact]) -> list[Commit]:
    """The commit records behind pinned pointers, in their order; raises as `Store.commit_of` does."""
    wanted = list(artifacts)
    paths = [store.path(one.kind, one.key, COMMIT_FILE) for one in wanted]
    found = _read(store, paths, Commit)
    return [
        commit
        if (commit := found.get(path)) is not None and commit.digest == one.digest
        else store.commit_of(one)  # erased, or told what is wrong with it
        for one, path in zip(wanted, paths, strict=True)
    ]


def readable_commits(store: Store, kind: str) -> list[Commit]:
    """As `all_commits` of `erase`, without those that cannot be read, which are logged."""
    markers = [str(path) for path in store.fs.glob(store.path(kind, "*", COMMIT_FILE))]
    records = [str(path) for path in store.fs.glob(store.path(kind, "*", f"{ERASED}*.json"))]
    found = [erasure.commit for erasure in _read(store, records, Erasure).values()]
    found += _read(store, markers, Commit).values()
    if unread := len(markers) + len(records) - len(found):
        log.warning("%s: %d of its records cannot be read and are left out", kind, unread)
    return list({(commit.key, commit.digest): commit for commit in found}.values())


def _read(store: Store, paths: Iterable[str], record: type[Record]) -> dict[str, Record]:
    """Path to record; those that cannot be read are left out."""
    wanted = list(dict.fromkeys(paths))
    texts = store.fs.cat(wanted, on_error="omit") if wanted else {}
    found = {}
    for path, text in texts.items():
        with suppress(ValidationError):
            found[path] = record.model_validate_json(text)
    return found
