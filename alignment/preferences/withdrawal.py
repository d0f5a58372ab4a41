"""Withdrawals applied to a recipe's shards: withdrawn ones are gone, withdrawn rows left out of those that hold them.

A shard that was built and does not hold a withdrawn row keeps its request, so that one person's wish makes one
shard anew and not ten thousand. What a shard holds that was not built yet is not known, so it is asked to leave
out all withdrawn rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.artifacts import Artifact, MissingArtifact, Store
from alignment.digest import json_digest
from alignment.preferences.row import ROWS_FILE
from alignment.preferences.shard import STAGE, ShardRequest
from alignment.preferences.tombstones import Withdrawn
from alignment.stages.execute import REQUEST_FILE


def without_withdrawn(
    requests: Mapping[str, ShardRequest],
    withdrawn: Withdrawn,
    current: Callable[[str], Artifact | None],
    store: Store,
) -> dict[str, ShardRequest]:
    """The requests that stand. `current` gives the artifact a shard has now, if any."""
    standing = {name: request for name, request in requests.items() if name not in withdrawn.shards}
    if not withdrawn.rows:
        return standing
    return {name: _applied(request, withdrawn.rows, current(name), store) for name, request in standing.items()}


def _applied(request: ShardRequest, rows: frozenset[str], current: Artifact | None, store: Store) -> ShardRequest:
    everything = request.model_copy(update={"withdrawn": tuple(sorted(rows))})
    if current is None:
        return everything
    try:
        asked = ShardRequest.model_validate_json(store.read(current, REQUEST_FILE))
        if STAGE.key(asked.model_copy(update={"withdrawn": ()})) != STAGE.key(request):
            return everything  # other content, which may hold any of them
        if set(asked.withdrawn) <= rows and not _holds(store, current, rows - set(asked.withdrawn)):
            return request.model_copy(update={"withdrawn": asked.withdrawn})
    except MissingArtifact:
        return everything
    return everything


def _holds(store: Store, shard: Artifact, rows: frozenset[str]) -> bool:
    """Whether a shard holds any of the rows; remembered, as an artifact never changes."""
    if not rows:
        return False
    asked = json_digest(sorted(rows))
    memory = store.cache / "withdrawn" / f"{shard.key}-{shard.attempt}.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["asked"] == asked:
            return bool(known["holds"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    holds = bool(rows_held(store, shard, rows))
    memory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{memory}.{asked[:8]}")
    partial.write_text(json.dumps({"asked": asked, "holds": holds}), encoding="utf-8")
    partial.replace(memory)
    return holds


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
