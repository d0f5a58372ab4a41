"""Tombstones: rows and shards that a recipe must not use any more, because somebody asked for their data to go.

One small object each, so that two people never overwrite each other:
`withdrawn/<recipe>/{rows,demonstrations,shards}/<id>.json`. They hold ids, a time and a reason, never a row's text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict

from alignment.preferences.shard import ShardRequest
from alignment.store import Store

FOLDER = "withdrawn"
What = Literal["rows", "demonstrations", "shards"]


class Tombstone(BaseModel):
    """One withdrawn row, demonstration or shard.

    Of a withdrawn shard, `artifacts` are the keys of what was ever built of it and `sources` the requests that read
    it: the same records are not to come back under another name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    at: str
    reason: str = ""
    artifacts: list[str] = []
    sources: list[ShardRequest] = []


@dataclass(frozen=True)
class Withdrawn:
    """What a recipe must not use: ids of preference rows and of rows to fine-tune on, and shard names.

    `sources` are requests for records of withdrawn shards, each with its shard's name.
    """

    rows: frozenset[str] = field(default_factory=frozenset)
    demonstrations: frozenset[str] = field(default_factory=frozenset)
    shards: frozenset[str] = field(default_factory=frozenset)
    sources: tuple[tuple[str, ShardRequest], ...] = ()


def read_withdrawn(store: Store, recipe: str) -> Withdrawn:
    """All of a recipe's tombstones, by listings; only those of whole shards are read."""
    shards = sorted(_ids(store, recipe, "shards"))
    stones = [stone for shard in shards if (stone := tombstone(store, recipe, "shards", shard)) is not None]
    return Withdrawn(
        rows=frozenset(_ids(store, recipe, "rows")),
        demonstrations=frozenset(_ids(store, recipe, "demonstrations")),
        shards=frozenset(shards),
        sources=tuple((stone.id, source) for stone in stones for source in stone.sources),
    )


def tombstone(store: Store, recipe: str, what: What, id: str) -> Tombstone | None:
    """One tombstone as it was written, or None."""
    try:
        return Tombstone.model_validate_json(store.fs.cat_file(_path(store, recipe, what, id)))
    except FileNotFoundError:
        return None


def bury(store: Store, recipe: str, what: What, stones: Iterable[Tombstone]) -> None:
    """Writes tombstones; one that stands already is written anew."""
    for stone in stones:
        store.replace(_path(store, recipe, what, stone.id), stone.model_dump_json(indent=1).encode())


def lift(store: Store, recipe: str, what: What, ids: Iterable[str]) -> None:
    """Removes tombstones; those that another process removed first are gone all the same."""
    for id in ids:
        try:
            store.fs.rm_file(_path(store, recipe, what, id))
        except FileNotFoundError:
            continue


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _path(store: Store, recipe: str, what: What, id: str) -> str:
    return store.path(FOLDER, recipe, what, f"{quote(id, safe='')}.json")


def _ids(store: Store, recipe: str, what: What) -> list[str]:
    folder = store.path(FOLDER, recipe, what)
    return [unquote(PurePosixPath(str(path)).stem) for path in store.fs.glob(f"{folder}/*.json")]
