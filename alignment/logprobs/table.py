"""What a reference pass writes: Parquet of log-probs, of dropped rows, and the digest and numbers over both."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.digest import SetDigest
from alignment.logprobs.effort import Effort

if TYPE_CHECKING:
    from alignment.logprobs.reference import Pass

LOGPROBS_FILE = "logprobs.parquet"
DROPPED_FILE = "dropped.parquet"
LOGPROBS_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("chosen_logp", pa.float64()),
        ("rejected_logp", pa.float64()),
        ("chosen_tokens", pa.int32()),
        ("rejected_tokens", pa.int32()),
        ("chosen_key", pa.string()),
        ("rejected_key", pa.string()),
    ]
)
DROPPED_SCHEMA = pa.schema([("row_id", pa.string()), ("reason", pa.string())])
OUTPUT = {LOGPROBS_FILE: LOGPROBS_SCHEMA, DROPPED_FILE: DROPPED_SCHEMA}


class Written:
    """What has been written so far: its digest and its numbers, neither of which grows with the rows."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.rows = self.sequences = self.scored = 0
        self.dropped: Counter[str] = Counter()
        self.effort = Effort()
        self._digest = SetDigest()
        self._digest.add(f"fingerprint {fingerprint}")

    def add(self, done: Pass) -> None:
        for row in done.keys:
            if row.chosen is None or row.rejected is None:
                self._digest.add(f"dropped {row.row_id} {row.reason}")
            else:
                self._digest.add(f"{row.row_id} {row.chosen.hex()} {row.rejected.hex()}")
        self.rows += len(done.kept)
        self.dropped += done.dropped
        self.sequences += done.sequences
        self.scored += done.scored
        self.effort = self.effort.then(done.effort)

    @property
    def digest(self) -> str:
        return self._digest.hexdigest

    def summary(self) -> dict[str, Any]:
        """`sequences` are distinct among `ROWS_AT_ONCE` rows; `tokens` are those of the sequences scored just now."""
        return {
            "rows": self.rows,
            "dropped": dict(sorted(self.dropped.items())),
            "sequences": self.sequences,
            "cache_hits": self.sequences - self.scored,
            "scored": self.scored,
            "tokens": self.effort.tokens,
            **self.effort.numbers(),
            "fingerprint": self.fingerprint,
        }


def logprobs_table(done: Pass) -> pa.Table:
    """The kept rows of a pass, in its order."""
    rows = []
    for row in done.kept:
        assert row.chosen is not None
        assert row.rejected is not None
        (chosen, chosen_tokens), (rejected, rejected_tokens) = done.values[row.chosen], done.values[row.rejected]
        keys = (row.chosen.hex(), row.rejected.hex())
        rows.append((row.row_id, chosen, rejected, chosen_tokens, rejected_tokens, *keys))
    columns = list(zip(*rows, strict=True)) or [()] * len(LOGPROBS_SCHEMA)
    return pa.table([list(column) for column in columns], schema=LOGPROBS_SCHEMA)


def dropped_table(done: Pass) -> pa.Table:
    """The rows that the token policy drops, in their order."""
    dropped = [{"row_id": row.row_id, "reason": row.reason} for row in done.keys if row.reason is not None]
    return pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA)


def writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd")
