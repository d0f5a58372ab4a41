"""Rows that several shards hold: found in memory that grows neither with the rows nor with how many are repeated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.store import CorruptArtifact

# Records spread over numbered files by what they have in common: what fits no memory is handled one file at a time.


class Partitions:
    """Records of one NumPy type in a folder of their own, which must not exist; a part is read once and then gone."""

    def __init__(self, folder: Path, record: npt.DTypeLike) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._record = np.dtype(record)

    def add(self, parts: npt.NDArray[np.int64], records: npt.NDArray[Any]) -> None:
        """Appends each record to the part that stands at its place in `parts`, in the order given."""
        order = np.argsort(parts, kind="stable")
        numbers, starts = np.unique(parts[order], return_index=True)
        for number, mine in zip(numbers, np.split(order, starts)[1:], strict=True):
            with (self._folder / str(number)).open("ab") as stream:
                records[mine].astype(self._record, copy=False).tofile(stream)

    def take(self, part: int) -> npt.NDArray[Any]:
        """The records of a part in the order they were added."""
        path = self._folder / str(part)
        if not path.exists():
            return np.empty(0, self._record)
        records = np.fromfile(path, self._record)
        path.unlink()
        return records


# Equal row ids brought together, however many rows there are: through files on disk, a part of them in memory.

ROWS_AT_ONCE = 1 << 20
"""About how many rows are in memory at a time, at 24 bytes each and a few times that to sort them."""
ID_DIGITS = 32
RECORD = np.dtype([("high", "u8"), ("low", "u8"), ("number", "i8")])


class IdGroups:
    """Row ids, each with a number; iterated over once, after all were added.

    `folder` must not exist yet; about `rows` ids are expected.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        self._parts = max(1, -(-rows // ROWS_AT_ONCE))
        self._files = Partitions(folder, RECORD)
        self._waiting: list[npt.NDArray[np.void]] = []
        self._rows_waiting = 0

    def add(self, ids: npt.NDArray[np.uint64], numbers: npt.NDArray[np.int64] | int) -> None:
        """Ids as `binary_ids` gives them, each with its number or all with the same."""
        records = np.empty(len(ids), RECORD)
        records["high"], records["low"], records["number"] = ids[:, 0], ids[:, 1], numbers
        self._waiting.append(records)
        self._rows_waiting += len(records)
        if self._rows_waiting >= ROWS_AT_ONCE:
            self._write()

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]]:
        """Parts of all that was added, equal ids side by side in the order they came in.

        (whether a row's id is another than the one before it, its number); no id is in two parts.
        """
        self._write()
        for part in range(self._parts):
            records = self._files.take(part)
            records = records[np.lexsort((records["low"], records["high"]))]
            begins = np.ones(len(records), bool)
            begins[1:] = (np.diff(records["high"]) != 0) | (np.diff(records["low"]) != 0)
            yield begins, records["number"]

    def _write(self) -> None:
        if self._waiting:
            records = np.concatenate(self._waiting)
            self._waiting.clear()
            self._rows_waiting = 0
            # ids are digests, so their first 32 bits spread them evenly
            self._files.add(((records["high"] >> 32) * self._parts >> 32).astype(np.int64), records)


def binary_ids(row_ids: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """Row ids as two unsigned numbers each, (n, 2), the first 64 bits first; raises `CorruptArtifact` for others."""
    try:
        digits = row_ids.cast(pa.binary(ID_DIGITS)).combine_chunks()
        whole = bytes.fromhex(digits.buffers()[1].to_pybytes().decode("ascii")) if len(digits) else b""
    except (pa.ArrowInvalid, ValueError) as error:
        raise CorruptArtifact(f"not all row ids are {ID_DIGITS} hex digits: {error}") from error
    if len(whole) != len(digits) * ID_DIGITS // 2 or digits.null_count:
        raise CorruptArtifact(f"not all row ids are {ID_DIGITS} hex digits")
    return np.frombuffer(whole, ">u8").astype(np.uint64).reshape(-1, 2)


UNIQUE = -1
REPEATED = np.dtype([("at", "i8"), ("first", "i8")])


def first_shards(
    row_ids: Iterable[pa.ChunkedArray], sizes: Sequence[int], folder: Path
) -> Iterator[npt.NDArray[np.int64]]:
    """For each shard in turn, what of its rows stood before: the index of the shard that held a row first.

    `UNIQUE` marks a row that had not stood before. `row_ids` are those of each shard in order, `sizes` how many
    each has. `folder`, which must not exist, gets 24 bytes a row, gone again when all is told.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    starts = ends - np.asarray(sizes, np.int64)
    groups = IdGroups(folder / "ids", int(ends[-1]))
    for start, shard in zip(starts, row_ids, strict=True):
        groups.add(binary_ids(shard), np.arange(start, start + len(shard)))
    runs = _runs(sizes)
    repeated = Partitions(folder / "repeated", REPEATED)
    for begins, places in groups:
        first = places[begins][np.cumsum(begins) - 1]
        again = np.empty(len(places) - int(begins.sum()), REPEATED)
        again["at"] = places[~begins]
        again["first"] = np.searchsorted(ends, first[~begins], side="right")
        repeated.add(runs[np.searchsorted(ends, again["at"], side="right")], again)
    for run, shards in groupby(range(len(sizes)), key=lambda index: int(runs[index])):
        known = np.sort(repeated.take(run), order="at")
        for index in shards:
            found = np.full(sizes[index], UNIQUE)
            mine = slice(*np.searchsorted(known["at"], (starts[index], ends[index])))
            found[known["at"][mine] - starts[index]] = known["first"][mine]
            yield found


def _runs(sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    """The number of the run that each shard belongs to: neighbours with `ROWS_AT_ONCE` rows together or fewer."""
    runs = np.empty(len(sizes), np.int64)
    run = total = 0
    for index, size in enumerate(sizes):
        if total and total + size > ROWS_AT_ONCE:
            run, total = run + 1, 0
        runs[index] = run
        total += size
    return runs
