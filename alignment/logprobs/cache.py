"""What is remembered of a reference: log-probabilities by sequence, and sequences by row."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.logprobs.keys import KEY_BYTES
from alignment.store import Store
from alignment.store.place import told_when_full, write_durably

# A growing table in a folder of immutable Parquet parts, on a local disk or any fsspec store.
#
# A part appears whole or not at all and is never written again, so readers and writers need no lock.
# Two writers that add the same key do no harm: the first in the order of names is read. Pages carry
# checksums; a part that is cut short or altered is set aside under another name and its rows are missing,
# which costs their recomputation and nothing else.

logger = logging.getLogger(__name__)

MANY_PARTS = 64
WHOLE_PART = 64 << 20
"""Bytes of a part that is merged with no other: what a look-up holds in memory at a time."""
SET_ASIDE = ".corrupt"
LISTINGS = 5


class Parts:
    """Parts `<store>/<folder>/part-*.parquet` of one schema, whose first column is the key."""

    def __init__(
        self, store: Store, folder: str, schema: pa.Schema, sound: Callable[[pa.Table], pa.Array] | None = None
    ) -> None:
        """`sound` says which rows of a table count; others are as if they were not there."""
        self.sound = sound
        self.store = store
        self.folder = store.path(folder)
        self.schema = schema
        self.key = schema.names[0]

    def lookup(self, keys: pa.Array) -> pa.Table:
        """The columns beside the key, a row for every key asked for in its order; null where it is missing."""
        held = pa.concat_tables([self.schema.empty_table(), *self._read(keys)])
        return held.drop_columns([self.key]).take(pc.index_in(keys, value_set=held[self.key]))

    def append(self, rows: pa.Table) -> None:
        """Commits the rows as one new part; an empty table writes nothing."""
        if not rows.num_rows:
            return
        stream = pa.BufferOutputStream()
        pq.write_table(rows.cast(self.schema), stream, compression="zstd", write_page_checksum=True)
        data = stream.getvalue().to_pybytes()
        name = f"part-{uuid.uuid4().hex}.parquet"
        with told_when_full(self.folder):
            self.store.fs.makedirs(self.folder, exist_ok=True)
            if not self.store.is_local:
                self.store.fs.pipe_file(f"{self.folder}/{name}", data)
                return
            arriving = Path(self.folder, f".{name}")
            try:
                write_durably(arriving, data)
                arriving.replace(Path(self.folder, name))
            finally:
                arriving.unlink(missing_ok=True)

    def compact(self, at_least: int = MANY_PARTS) -> None:
        """Merges small parts when they are many; a crash in between leaves rows twice, which is harmless."""
        found = self.store.fs.glob(f"{self.folder}/part-*.parquet", detail=True)
        small = sorted(str(path) for path, about in found.items() if about["size"] < WHOLE_PART)
        if len(small) < at_least:
            return
        gathered: dict[str, pa.Table] = {}
        try:
            for path in small:
                if (table := self._open(path)) is not None:
                    gathered[path] = table
                if path == small[-1] or sum(each.nbytes for each in gathered.values()) >= WHOLE_PART:
                    self._merge(gathered)
                    gathered = {}
        except FileNotFoundError:
            return  # another process is merging them

    def _merge(self, parts: dict[str, pa.Table]) -> None:
        if not parts:
            return
        self.append(first_of_each(pa.concat_tables(parts.values()), self.key))
        for path in parts:
            self._remove(path)

    def _paths(self) -> list[str]:
        return sorted(str(path) for path in self.store.fs.glob(f"{self.folder}/part-*.parquet"))

    def _read(self, keys: pa.Array) -> list[pa.Table]:
        """What sound parts hold of the keys, part by part: no more than one is in memory whole.

        A part that vanished was merged into a newer one: the folder is listed again.
        """
        for _ in range(LISTINGS):
            try:
                opened = (table for path in self._paths() if (table := self._open(path)) is not None)
                return [table.filter(pc.is_in(table[self.key], value_set=keys)) for table in opened]
            except FileNotFoundError:
                continue
        raise OSError(f"{self.folder}: its parts keep changing while they are read")

    def _open(self, path: str) -> pa.Table | None:
        data = self.store.fs.cat_file(path)
        try:
            table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
            if table.schema.remove_metadata() != self.schema:
                raise pa.ArrowInvalid("another schema")
            return table if self.sound is None else table.filter(self.sound(table))
        except (pa.ArrowException, OSError) as error:
            logger.warning("%s cannot be read (%s): set aside, its rows are computed again", path, error)
            self._set_aside(path)
            return None

    def _set_aside(self, path: str) -> None:
        try:
            self.store.fs.mv(path, path + SET_ASIDE)
        except FileNotFoundError:
            logger.info("%s was set aside by another process", PurePosixPath(path).name)

    def _remove(self, path: str) -> None:
        try:
            self.store.fs.rm_file(path)
        except FileNotFoundError:
            logger.info("%s was merged by another process", PurePosixPath(path).name)


def first_of_each(table: pa.Table, key: str) -> pa.Table:
    """The table with the first row of every key, in the order keys first appear."""
    column = table[key].combine_chunks()
    first = pc.equal(pc.index_in(column, value_set=column), pa.array(range(len(column)), pa.int32()))
    return table.filter(first)


def as_keys(values: Iterable[bytes | None]) -> pa.Array:
    """16-byte keys as a column."""
    return pa.array(values, pa.binary(16))


VALUES = pa.schema([("key", pa.binary(KEY_BYTES)), ("sum", pa.float64()), ("tokens", pa.int32())])
ROWS = pa.schema(
    [
        ("row_id", pa.string()),
        ("chosen_key", pa.binary(KEY_BYTES)),
        ("rejected_key", pa.binary(KEY_BYTES)),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class RowKeys:
    """A row's sequence keys, or the reason why the token policy drops it."""

    row_id: str
    chosen: bytes | None
    rejected: bytes | None
    reason: str | None = None


class LogprobCache:
    """Caches of one reference (`fingerprint`) and one way to tokenise (`policy`), under `<store>/cache`."""

    def __init__(self, store: Store, fingerprint: str, policy: str) -> None:
        self._values = Parts(store, f"cache/reference_logprobs/{fingerprint}", VALUES, _is_finite)
        self._rows = Parts(store, f"cache/sequence_keys/{fingerprint}/{policy}", ROWS)

    def values(self, keys: pa.Array) -> pa.Table:
        """`sum` (nat, float64) and `tokens` (int32) a key, in the order asked; null where never scored."""
        return self._values.lookup(keys)

    def add_values(self, scored: Sequence[tuple[bytes, float, int]]) -> None:
        """Commits scored sequences (key, nats, completion tokens) as one part; nats that are not finite never come in.

        Whoever scores says which row and model they are of, and raises.
        """
        if not all(math.isfinite(nats) for _, nats, _ in scored):
            raise ValueError("a log-prob that is not finite is never kept")
        self._values.append(_table(scored, VALUES))

    def rows(self, row_ids: Sequence[str]) -> list[RowKeys | None]:
        """What is known of each row, in the order asked."""
        found = self._rows.lookup(pa.array(row_ids, pa.string())).to_pylist()
        return [
            None
            if cells["reason"] is None and cells["chosen_key"] is None
            else RowKeys(row_id, cells["chosen_key"], cells["rejected_key"], cells["reason"])
            for row_id, cells in zip(row_ids, found, strict=True)
        ]

    def add_rows(self, rows: Iterable[RowKeys]) -> None:
        """Commits rows' keys as one part."""
        self._rows.append(_table([(row.row_id, row.chosen, row.rejected, row.reason) for row in rows], ROWS))

    def compact(self) -> None:
        """Merges small parts where they have become many."""
        self._values.compact()
        self._rows.compact()


def _is_finite(values: pa.Table) -> pa.Array:
    """A NaN that an older version kept is scored again."""
    return pc.is_finite(values["sum"])


def _table(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([list(column) for column in columns], schema=schema)
