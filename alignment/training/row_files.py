"""The files that a trainer reads its rows from: Arrow, mapped into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from alignment.training.pairs import PAIRS, PolicyCompletion, PolicyPair, PolicyRow

SPLITS = ("train", "held_out")
SFT_FILE = "sft.arrow"
BATCH_ROWS = 4096
"""Rows of a batch of the file that the trainer reads from, and of what is held in memory while it is written."""


class PolicyPairs(Sequence[Any]):
    """The rows of an Arrow file, mapped into memory: a process holds those it looks at, however many there are."""

    def __init__(self, path: Path) -> None:
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._rows: int = sum(self._file.get_batch(index).num_rows for index in range(self._file.num_record_batches))

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        batch, place = divmod(int(index), BATCH_ROWS)
        cells = self._file.get_batch(batch).slice(place, 1).to_pylist()[0]
        return PolicyCompletion.of(cells) if "label" in cells else PolicyPair.of(cells)

    @property
    def row_ids(self) -> pa.ChunkedArray:
        """The ids of all rows, in the file's order."""
        return self._column("row_id")

    def longest(self) -> PolicyRow:
        """The row with the longest sequence."""
        lengths = self._column("longest").to_numpy()
        row: PolicyRow = self[int(lengths.argmax())]
        return row

    def _column(self, name: str) -> pa.ChunkedArray:
        batches = (self._file.get_batch(index) for index in range(self._file.num_record_batches))
        return pa.chunked_array([batch.column(name) for batch in batches], self._file.schema.field(name).type)


class PairsFile:
    """Writes such a file in batches of `BATCH_ROWS`; it is there once all went well, or not at all."""

    def __init__(self, path: Path, schema: pa.Schema = PAIRS) -> None:
        self.path, self.schema, self.rows = path, schema, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._arriving = path.with_name(f".{path.name}")
        self._file = pa.ipc.new_file(str(self._arriving), schema)
        self._waiting: list[dict[str, Any]] = []

    def add(self, row: PolicyRow) -> None:
        """Adds a row."""
        self._waiting.append(row.cells())
        self.rows += 1
        if len(self._waiting) == BATCH_ROWS:
            self._write()

    def close(self) -> None:
        """Writes what waits, and puts the file into its place."""
        if self._waiting:
            self._write()
        self._file.close()
        self._arriving.replace(self.path)

    def _write(self) -> None:
        self._file.write_batch(pa.RecordBatch.from_pylist(self._waiting, schema=self.schema))
        self._waiting = []


@dataclass(frozen=True)
class PolicyRows:
    """Every row of a manifest: trained on, held out, or dropped for a reason; `fingerprint` is their reference's."""

    fingerprint: str
    train: PolicyPairs
    held_out: PolicyPairs
    sft: PolicyPairs | None = None
    """Demonstrations that are shown beside the rows trained on, where the recipe mixes some in."""


def open_rows(folder: Path, fingerprint: str) -> PolicyRows:
    """What `Joining.write` wrote, and the SFT rows beside it, if there are any."""
    sft = PolicyPairs(folder / SFT_FILE) if (folder / SFT_FILE).is_file() else None
    train, held_out = (PolicyPairs(folder / f"{split}.arrow") for split in SPLITS)
    return PolicyRows(fingerprint, train, held_out, sft)
