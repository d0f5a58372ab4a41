"""Equal row ids brought together, however many rows there are: through files on disk, a part of them in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.preferences.partitions import Partitions
from alignment.store import CorruptArtifact

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
