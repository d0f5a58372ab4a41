"""Plain records to and from Parquet, a batch in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 1024


def write_records(path: str | Path, schema: pa.Schema, records: Iterable[dict[str, Any]]) -> int:
    """Writes records in the order given; a file with the schema even when there are none. Returns how many."""
    written = 0
    remaining = iter(records)
    with pq.ParquetWriter(str(path), schema, compression="zstd") as writer:
        while batch := list(islice(remaining, BATCH_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            written += len(batch)
    return written


def iter_records(path: str | Path, groups: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
    """Records in file order, of all row groups or of those named."""
    with pq.ParquetFile(str(path)) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=groups):
            yield from batch.to_pylist()


def read_columns(path: str | Path, *columns: str) -> pa.Table:
    """Some columns of a file whole, without what `pyarrow.parquet.read_table` looks up for data sets of many files."""
    with pq.ParquetFile(str(path)) as file:
        return file.read(list(columns))
