"""Rows that several shards hold: found in memory that grows neither with the rows nor with how many are repeated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.preferences import id_groups
from alignment.preferences.id_groups import IdGroups, binary_ids
from alignment.preferences.partitions import Partitions

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
        if total and total + size > id_groups.ROWS_AT_ONCE:
            run, total = run + 1, 0
        runs[index] = run
        total += size
    return runs
