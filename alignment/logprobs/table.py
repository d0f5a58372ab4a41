"""What a reference pass writes: Parquet of log-probs, of dropped rows, and the digest and numbers over both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.digest import SetDigest
from alignment.logprobs.effort import Effort
from alignment.logprobs.keys import PAIR

if TYPE_CHECKING:
    from alignment.logprobs.reference import Pass

LOGPROBS_FILE = "logprobs.parquet"
DROPPED_FILE = "dropped.parquet"
DROPPED_SCHEMA = pa.schema([("row_id", pa.string()), ("reason", pa.string())])


def logprobs_schema(names: Sequence[str]) -> pa.Schema:
    """Columns of rows whose sequences have these names; of labelled rows the partner is named as well."""
    columns = [("logp", pa.float64()), ("tokens", pa.int32()), ("key", pa.string())]
    fields = [(f"{name}_{column}", kind) for column, kind in columns for name in names]
    partner = [("partner_id", pa.string())] if "partner" in names else []
    return pa.schema([("row_id", pa.string()), *fields, *partner])


LOGPROBS_SCHEMA = logprobs_schema(PAIR)


SHARDS = "shards"


def folder_of(artifact: Path, shard_digest: str) -> Path:
    """Where the log-probs of one shard are written in an artifact that has those of several."""
    return artifact / SHARDS / shard_digest


def logprobs_folder(artifact: Path, shard_digest: str) -> Path:
    """Where the log-probs of a shard are in a fetched artifact, whether it has those of one shard or of several."""
    return folder_of(artifact, shard_digest) if (artifact / SHARDS).is_dir() else artifact


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
        """Counts the rows of a pass, and adds them to the digest."""
        for row in done.keys:
            if row.reason is not None:
                self._digest.add(f"dropped {row.row_id} {row.reason}")
            else:
                self._digest.add(" ".join([row.row_id, *(key.hex() for key in row.keys.values())]))
        self.rows += len(done.kept)
        self.dropped += done.dropped
        self.sequences += done.sequences
        self.scored += done.scored
        self.effort = self.effort.then(done.effort)

    @property
    def digest(self) -> str:
        """The digest of what was scored: row ids, sequence keys and reasons, never the floats."""
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


def logprobs_table(done: Pass, names: Sequence[str] = PAIR) -> pa.Table:
    """The kept rows of a pass, in its order; a sequence that a row lacks is null."""
    missing: tuple[float | None, int | None] = (None, None)
    columns: dict[str, list[Any]] = {"row_id": [row.row_id for row in done.kept]}
    for name in names:
        keys = [row.keys.get(name) for row in done.kept]
        values = [missing if key is None else done.values[key] for key in keys]
        columns[f"{name}_logp"] = [logp for logp, _ in values]
        columns[f"{name}_tokens"] = [tokens for _, tokens in values]
        columns[f"{name}_key"] = [None if key is None else key.hex() for key in keys]
    columns["partner_id"] = [row.partner for row in done.kept]
    schema = logprobs_schema(names)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def dropped_table(done: Pass) -> pa.Table:
    """The rows that the token policy drops, in their order."""
    dropped = [{"row_id": row.row_id, "reason": row.reason} for row in done.keys if row.reason is not None]
    return pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA)


def writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of such a file."""
    return pq.ParquetWriter(path, schema, compression="zstd")
