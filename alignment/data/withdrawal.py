"""Withdrawals applied to a recipe's shards: withdrawn ones are gone, withdrawn rows left out of those that hold them.

A shard that was built and does not hold a withdrawn row keeps its request, so that one person's wish makes one
shard anew and not ten thousand. What a shard holds that was not built yet is not known, so it is asked to leave
out all withdrawn rows.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal, get_args
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from alignment.data.forms.table import normalise
from alignment.data.rows import ROWS_FILE, PreferenceRow, SftRow
from alignment.data.shards import Shards, overlaps
from alignment.data.validate import QUARANTINE_FILE
from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.preference_shard import STAGE, ShardRequest
from alignment.store import Artifact, ErasedArtifact, MissingArtifact, Store

# Tombstones: rows and shards that a recipe must not use any more, because somebody asked for their data to go.
#
# One small object each, so that two people never overwrite each other:
# `withdrawn/<recipe>/{rows,demonstrations,shards}/<id>.json`. They hold ids, a time and a reason, never a row's text.

FOLDER = "withdrawn"
What = Literal["rows", "demonstrations", "shards"]


class Tombstone(BaseModel):
    """One withdrawn row, demonstration or shard.

    Of a withdrawn shard, `artifacts` are the keys of what was ever built of it and `sources` the requests that read
    it: the same records are not to come back under another name. `because` names the withdrawals that it belongs to
    (`cause`), its own among them where it has one; empty where it was withdrawn by itself alone, or by a version that
    did not say. `inherited_from` is the recipe that a derived one has it from; empty where somebody withdrew it from
    this very recipe, or a version that did not say inherited it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    at: str
    reason: str = ""
    artifacts: list[str] = []
    sources: list[ShardRequest] = []
    because: list[str] = []
    inherited_from: str = ""

    @property
    def causes(self) -> set[str]:
        """The withdrawals that it belongs to, its own where it names none."""
        return set(self.because or [self.id])


@dataclass(frozen=True)
class Withdrawn:
    """What a recipe must not use: ids of preference rows and of rows to fine-tune on, and shard names.

    `sources` are requests for records of withdrawn shards, each with its shard's name.
    """

    rows: frozenset[str] = field(default_factory=frozenset)
    demonstrations: frozenset[str] = field(default_factory=frozenset)
    shards: frozenset[str] = field(default_factory=frozenset)
    sources: tuple[tuple[str, ShardRequest], ...] = ()

    def together(self, other: Withdrawn) -> Withdrawn:
        """What either of the two names."""
        return Withdrawn(
            rows=self.rows | other.rows,
            demonstrations=self.demonstrations | other.demonstrations,
            shards=self.shards | other.shards,
            sources=(*self.sources, *(each for each in other.sources if each not in self.sources)),
        )

    def without(self, other: Withdrawn) -> Withdrawn:
        """What this names and the other does not."""
        return Withdrawn(
            rows=self.rows - other.rows,
            demonstrations=self.demonstrations - other.demonstrations,
            shards=self.shards - other.shards,
            sources=tuple((shard, source) for shard, source in self.sources if shard not in other.shards),
        )


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


def cause(what: What, id: str) -> str:
    """How a tombstone names a withdrawal: a row by its id, a shard as `shards/<name>`."""
    return f"shards/{id}" if what == "shards" else id


def tombstones(store: Store, recipe: str, what: What) -> list[Tombstone]:
    """All of a recipe's tombstones of a kind as they were written."""
    paths = store.matching(store.path(FOLDER, recipe, what), "*.json")
    texts = store.contents(paths).values()
    return [Tombstone.model_validate_json(text) for text in texts if isinstance(text, bytes)]


def last_withdrawal(store: Store, recipes: Iterable[str]) -> float | None:
    """When something was last withdrawn from one of the recipes (seconds since 1970), by its tombstone; None: never."""
    stones = [stone for recipe in recipes for what in get_args(What) for stone in tombstones(store, recipe, what)]
    return max((datetime.fromisoformat(stone.at).timestamp() for stone in stones), default=None)


def bury(store: Store, recipe: str, what: What, stones: Iterable[Tombstone]) -> None:
    """Writes tombstones. One that stands already keeps its time, its causes, and its reason where none is given now; an
    inherited one is the recipe's own from now on."""
    standing = set(_ids(store, recipe, what))
    for stone in stones:
        known = tombstone(store, recipe, what, stone.id) if stone.id in standing else None
        write(store, recipe, what, stone if known is None else _joined(known, stone))


def _joined(known: Tombstone, stone: Tombstone) -> Tombstone:
    causes = sorted(known.causes | stone.causes)
    because = [] if causes == [stone.id] else causes
    kept = {"at": known.at, "reason": stone.reason or known.reason, "because": because}
    return stone.model_copy(update=kept | {"inherited_from": ""})


def write(store: Store, recipe: str, what: What, stone: Tombstone) -> None:
    """Writes one tombstone as it is given, in place of one that stands already."""
    absent = {name for name in ("because", "inherited_from") if not getattr(stone, name)}
    text = stone.model_dump_json(indent=1, exclude=absent)
    store.replace(_path(store, recipe, what, stone.id), text.encode())


def inherit(store: Store, base: str, derived: str) -> None:
    """Withdraws from a recipe that is derived from another what was withdrawn from that one, and lifts what was
    inherited and restored since. What was withdrawn from the derived recipe itself stays."""
    back = restored_since(store, derived)
    restored: dict[What, frozenset[str]] = {
        "rows": back.rows,
        "demonstrations": back.demonstrations,
        "shards": back.shards,
    }
    for what, ids in restored.items():
        lift(store, derived, what, ids)
        for id in sorted(set(_ids(store, base, what)) - set(_ids(store, derived, what))):
            if (stone := tombstone(store, base, what, id)) is not None:
                write(store, derived, what, stone.model_copy(update={"inherited_from": base}))


def restored_since(store: Store, derived: str) -> Withdrawn:
    """What a recipe inherited from another from which it is withdrawn no more."""

    def restored(what: What) -> frozenset[str]:
        inherited = [stone for stone in tombstones(store, derived, what) if stone.inherited_from]
        standing = {base: set(_ids(store, base, what)) for base in {stone.inherited_from for stone in inherited}}
        return frozenset(stone.id for stone in inherited if stone.id not in standing[stone.inherited_from])

    return Withdrawn(restored("rows"), restored("demonstrations"), restored("shards"))


def lift(store: Store, recipe: str, what: What, ids: Iterable[str]) -> None:
    """Removes tombstones; those that another process removed first are gone all the same."""
    for id in ids:
        try:
            store.fs.rm_file(_path(store, recipe, what, id))
        except FileNotFoundError:
            continue


def now() -> str:
    """The present moment in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _path(store: Store, recipe: str, what: What, id: str) -> str:
    return store.path(FOLDER, recipe, what, f"{quote(id, safe='')}.json")


def _ids(store: Store, recipe: str, what: What) -> list[str]:
    folder = store.path(FOLDER, recipe, what)
    return [unquote(PurePosixPath(path).stem) for path in store.matching(folder, "*.json")]


# Which kinds of artifact hold rows as text, and which of some rows one holds.


@dataclass(frozen=True)
class Holder:
    """A kind of artifact that holds rows as text, in `files` by id and in its quarantine as they were read."""

    kind: str
    files: tuple[str, ...]
    parse: Callable[[object, str, int], PreferenceRow | SftRow | str]

    def held(self, store: Store, artifact: Artifact, rows: frozenset[str]) -> set[str]:
        """Those of the row ids that stand in an artifact of this kind, set aside or not."""
        return rows_held(store, artifact, rows, self.files) | self._quarantined(store, artifact, rows)

    def _quarantined(self, store: Store, artifact: Artifact, rows: frozenset[str]) -> set[str]:
        return {id for id in self.set_aside(store, artifact) if id in rows} if rows else set()

    def set_aside(self, store: Store, artifact: Artifact) -> Iterator[str]:
        """The ids of those rows in the quarantine of an artifact that have one."""
        table = pq.read_table(pa.BufferReader(store.read(artifact, QUARANTINE_FILE)), columns=["text"])
        for text in table["text"].to_pylist():
            try:
                row = self.parse(json.loads(text), "", 1)
            except (ValueError, RecursionError):
                continue
            if not isinstance(row, str):
                yield row.row_id


SHARDS = Holder("preference_shard", (ROWS_FILE,), normalise)


def rows_held(
    store: Store, artifact: Artifact, rows: frozenset[str], files: tuple[str, ...] = (ROWS_FILE,)
) -> set[str]:
    """Those of the row ids that files of an artifact hold, read from their one column of ids."""
    wanted = pa.array(sorted(rows), pa.string())
    held: set[str] = set()
    for name in files if rows else ():
        ids = pq.read_table(pa.BufferReader(store.read(artifact, name)), columns=["row_id"])["row_id"]
        held.update(ids.filter(pc.is_in(ids, value_set=wanted)).to_pylist())
    return held


class RemainingShards(Mapping[str, ShardRequest]):
    """A source's shards without what was withdrawn; a file is pinned when its shard is asked for.

    `current` gives the artifact a shard has now, if any.
    """

    def __init__(
        self, shards: Shards, withdrawn: Withdrawn, current: Callable[[str], Artifact | None], store: Store
    ) -> None:
        self._shards = shards
        self._withdrawn = withdrawn
        self._current = current
        self._store = store
        self._applied: dict[str, ShardRequest] = {}

    def __getitem__(self, name: str) -> ShardRequest:
        if name in self.withdrawn:
            raise KeyError(name)
        request, rows = self._shards[name], self._withdrawn.rows
        if (shard := self._withdrawn_as(request)) is not None:  # it was written just now
            raise BadInput(
                f"holds what was withdrawn as shard {shard}", file=request.file.url if request.file else None
            )
        if not rows:
            return request
        if name not in self._applied:
            self._applied[name] = _applied(request, rows, self._current(name), self._store)
        return self._applied[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._shards if name not in self.withdrawn)

    def __len__(self) -> int:
        return len(self._shards) - len(self.withdrawn)

    def __contains__(self, name: object) -> bool:
        return name in self._shards and name not in self.withdrawn

    @cached_property
    def withdrawn(self) -> Mapping[str, str]:
        """Shards that the source lists and that are left out → why: the name, or the records, of a withdrawn one.

        Only a file of a withdrawn one's size is read for it.
        """
        found: dict[str, str] = {}
        for name in self._shards:
            if name in self._withdrawn.shards:
                found[name] = f"{name} is the name of a withdrawn shard"
            elif self._withdrawn.sources:
                with suppress(BadInput):  # whoever asks for it is told
                    if self._is_suspect(name) and (shard := self._withdrawn_as(self._shards[name])) is not None:
                        found[name] = f"{name} holds what was withdrawn as shard {shard}"
        return found

    def _is_suspect(self, name: str) -> bool:
        if (listed := self._shards.file(name)) is None:
            return True
        url, size = listed
        known = [source.file for _, source in self._withdrawn.sources if source.file is not None]
        return any(url == file.url or size in (None, file.size) for file in known)

    def _withdrawn_as(self, request: ShardRequest) -> str | None:
        return next((shard for shard, source in self._withdrawn.sources if overlaps(source, request)), None)

    def modified(self, name: str) -> float | None:
        """When the shard's file was last written, in seconds since the epoch; None where that is not known."""
        return self._shards.modified(name)


def _applied(request: ShardRequest, rows: frozenset[str], current: Artifact | None, store: Store) -> ShardRequest:
    everything = request.model_copy(update={"withdrawn": tuple(sorted(rows))})
    if current is None:
        return everything
    try:
        asked = ShardRequest.model_validate_json(store.read(current, REQUEST_FILE))
        if STAGE.key(asked.model_copy(update={"withdrawn": ()})) != STAGE.key(request):
            return everything  # other content, which may hold any of them
        if set(asked.withdrawn) <= rows and not holds(store, current, rows - set(asked.withdrawn)):
            return request.model_copy(update={"withdrawn": asked.withdrawn})
    except MissingArtifact:
        return everything
    return everything


def holds(store: Store, shard: Artifact, rows: frozenset[str]) -> bool:
    """Whether a shard artifact holds any of the rows, valid or set aside; remembered, as an artifact never changes.

    One whose rows were erased counts as holding them: it is of no more use.
    """
    if not rows:
        return False
    asked = json_digest(sorted(rows))
    memory = store.cache / "holds" / f"{shard.key}-{shard.attempt}.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["asked"] == asked:
            return bool(known["holds"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        holds = bool(SHARDS.held(store, shard, rows))
    except ErasedArtifact:
        return True
    memory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{memory}.{uuid.uuid4().hex[:8]}")
    partial.write_text(json.dumps({"asked": asked, "holds": holds}), encoding="utf-8")
    partial.replace(memory)
    return holds
