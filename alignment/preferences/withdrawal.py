"""Withdrawals applied to a recipe's shards: withdrawn ones are gone, withdrawn rows left out of those that hold them.

A shard that was built and does not hold a withdrawn row keeps its request, so that one person's wish makes one
shard anew and not ten thousand. What a shard holds that was not built yet is not known, so it is asked to leave
out all withdrawn rows.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.preferences.holder import SHARDS
from alignment.preferences.origin import overlaps
from alignment.preferences.shard import STAGE, ShardRequest
from alignment.preferences.shards import Shards
from alignment.preferences.tombstones import Withdrawn
from alignment.stages.execute import REQUEST_FILE
from alignment.store import Artifact, ErasedArtifact, MissingArtifact, Store


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
