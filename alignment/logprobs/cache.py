"""What is remembered of a reference: log-probabilities by sequence, and sequences by row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from alignment.logprobs.keys import KEY_BYTES
from alignment.logprobs.parts import Parts
from alignment.logprobs.token_ids import TokenIds
from alignment.store import Store


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
        self.token_ids = TokenIds(store, policy)

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
        self.token_ids.compact()


def _is_finite(values: pa.Table) -> pa.Array:
    """A NaN that an older version kept is scored again."""
    return pc.is_finite(values["sum"])


def _table(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([list(column) for column in columns], schema=schema)
