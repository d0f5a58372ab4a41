"""What is read of one Parquet part: its footer, and the row groups that may hold a key.

Keys are compared by their prefixes, the first eight bytes as a number: in the order of keys, and equal for some.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

READ_BYTES = 4 << 20
"""Bytes in memory of the row groups that are read at a time."""
LAST = (1 << 64) - 1


@dataclass(frozen=True)
class Asked:
    """The keys of a look-up in the order of their prefixes."""

    keys: pa.Array
    prefixes: np.ndarray

    def among(self, lows: np.ndarray, highs: np.ndarray) -> list[int]:
        """Places of the ranges that a key lies in."""
        first, end = np.searchsorted(self.prefixes, lows, "left"), np.searchsorted(self.prefixes, highs, "right")
        return [int(place) for place in np.nonzero(end > first)[0]]

    def between(self, low: int, high: int) -> pa.Array:
        """The keys whose prefix is between `low` and `high`, both included."""
        first = int(np.searchsorted(self.prefixes, np.uint64(low), "left"))
        end = int(np.searchsorted(self.prefixes, np.uint64(high), "right"))
        return self.keys[first:end]


def asked_for(keys: pa.Array) -> Asked:
    """The keys in the order of their prefixes."""
    found = prefixes(keys)
    order = np.argsort(found, kind="stable")
    return Asked(keys.take(pa.array(order)), found[order])


# What is remembered in the process of parts, which never change: one of another size was damaged.


@dataclass(frozen=True)
class Footer:
    """A part's footer, and of its row groups the range of their keys' prefixes and where each ends (in rows)."""

    metadata: pq.FileMetaData
    lows: np.ndarray
    highs: np.ndarray
    ends: np.ndarray


@lru_cache(maxsize=1024)
def footer_of(path: str, size: int, schema: pa.Schema) -> Footer:
    """A part's footer, with the range of prefixes of each row group; `pa.ArrowInvalid` for another schema."""
    with pa.OSFile(path) as file, pq.ParquetFile(file) as parquet:
        metadata = parquet.metadata
        if parquet.schema_arrow.remove_metadata() != schema:
            raise pa.ArrowInvalid("another schema")
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    about = [group.column(0).statistics for group in groups]
    ranges = [
        (prefix_of(one.min), prefix_of(one.max)) if one is not None and one.has_min_max else (0, LAST) for one in about
    ]
    lows, highs = np.array(ranges, np.uint64).reshape(-1, 2).T
    return Footer(metadata, lows, highs, np.cumsum([group.num_rows for group in groups]))


@lru_cache(maxsize=256)
def key_prefixes(path: str, size: int, schema: pa.Schema) -> np.ndarray:
    """What every key of a part begins with, in the part's order."""
    with pa.OSFile(path) as file:
        known = footer_of(path, size, schema).metadata
        parquet = pq.ParquetFile(file, metadata=known, page_checksum_verification=True)
        return prefixes(parquet.read(columns=[schema.names[0]]).column(0).combine_chunks())


def read_groups(path: str, footer: Footer, groups: Sequence[int]) -> pa.Table:
    """These row groups of a part, their page checksums verified."""
    with pa.OSFile(path) as file:
        parquet = pq.ParquetFile(file, metadata=footer.metadata, page_checksum_verification=True)
        return parquet.read_row_groups(list(groups), use_threads=len(groups) > 4)


def batches(metadata: pq.FileMetaData, groups: Sequence[int]) -> Iterator[list[int]]:
    """The row groups in runs of about `READ_BYTES` at most; a larger one stands alone."""
    sizes = [metadata.row_group(group).total_byte_size for group in groups]
    for run in runs(sizes, READ_BYTES):
        yield [groups[place] for place in run]


def runs(sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices in runs whose sizes add up to `most` at most; what is larger stands alone."""
    run: list[int] = []
    total = 0
    for index, size in enumerate(sizes):
        if run and total + size > most:
            yield run
            run, total = [], 0
        run.append(index)
        total += size
    if run:
        yield run


def prefixes(keys: pa.Array) -> np.ndarray:
    """The first eight bytes of each key as a number; numbers are in the order of keys, and equal for some."""
    if pa.types.is_fixed_size_binary(keys.type) and keys.type.byte_width >= 8:
        whole = np.frombuffer(keys.buffers()[1], np.uint8).reshape(-1, keys.type.byte_width)
        first = np.ascontiguousarray(whole[keys.offset : keys.offset + len(keys), :8])
    else:
        _, offsets, data = keys.cast(pa.binary()).buffers()
        ends = np.frombuffer(offsets, np.int32)[keys.offset : keys.offset + len(keys) + 1]
        letters = np.concatenate([np.frombuffer(data, np.uint8) if data else [], np.zeros(8)]).astype(np.uint8)
        places = ends[:-1, None] + np.arange(8)
        first = np.where(places < ends[1:, None], letters[places], 0).astype(np.uint8)
    return first.view(">u8").reshape(-1).astype(np.uint64)


def prefix_of(key: bytes | str) -> int:
    """The first eight bytes of a key, as an unsigned number."""
    data = key.encode() if isinstance(key, str) else key
    return int.from_bytes(data[:8].ljust(8, b"\0"), "big")
