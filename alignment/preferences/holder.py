"""Which kinds of artifact hold rows as text, and which of some rows one holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.preferences.normalise import normalise
from alignment.preferences.quarantine import QUARANTINE_FILE
from alignment.preferences.row import ROWS_FILE, PreferenceRow, SftRow
from alignment.store import Artifact, Store


@dataclass(frozen=True)
class Holder:
    """A kind of artifact that holds rows as text, in `files` by id and in its quarantine as they were read."""

    kind: str
    files: tuple[str, ...]
    parse: Callable[[object, str, int], PreferenceRow | SftRow | str]

    def held(self, store: Store, artifact: Artifact, rows: frozenset[str]) -> set[str]:
        """Those of the row ids that stand in an artifact of this kind, set aside or not."""
        return rows_held(store, artifact, rows, self.files) | set(self._quarantined(store, artifact, rows))

    def _quarantined(self, store: Store, artifact: Artifact, rows: frozenset[str]) -> Iterator[str]:
        if not rows:
            return
        table = pq.read_table(pa.BufferReader(store.read(artifact, QUARANTINE_FILE)), columns=["text"])
        for text in table["text"].to_pylist():
            try:
                row = self.parse(json.loads(text), "", 1)
            except (ValueError, RecursionError):
                continue
            if not isinstance(row, str) and row.row_id in rows:
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
