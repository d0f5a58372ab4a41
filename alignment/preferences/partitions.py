"""Records spread over numbered files by what they have in common: what fits no memory is handled one file at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


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
