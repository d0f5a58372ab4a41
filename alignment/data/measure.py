"""Measures preference rows for `alignment.data.statistics`, a shard in memory at a time.

What follows from a row's content alone stands in columns of `rows.parquet` (`DERIVED`), so nothing here reads text but
that of shards that an earlier version wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.duplicates import Partitions
from alignment.data.rows import (
    CHOSEN_LENGTH,
    PAIR_ID,
    REJECTED_LENGTH,
    ROWS_FILE,
    decode,
    pair_id,
    read_columns,
    text_of,
)
from alignment.data.statistics import BIN, BINS, LogpNumbers, PairNumbers

SCORES = ("chosen_score", "rejected_score")
MEASURED = (PAIR_ID, CHOSEN_LENGTH, REJECTED_LENGTH, *SCORES)
"""Columns of `rows.parquet` that are measured. Not every shard has scores."""
TEXTS = ("form", "prompt", "chosen", "rejected", "completion")
BATCH_ROWS = 4096

Floats = npt.NDArray[np.float64]


def measured_columns(folder: Path, *columns: str) -> pa.Table:
    """Those of `MEASURED` (all by default) that a shard's rows have, derived anew where an earlier version wrote none
    of `DERIVED`."""
    wanted = columns or MEASURED
    table = read_columns(folder / ROWS_FILE, *wanted)
    if len(missing := set(wanted) - set(table.column_names) - set(SCORES)):
        anew = _derived_anew(folder / ROWS_FILE)
        for name in sorted(missing):
            table = table.append_column(name, anew[name])
    return table


def _derived_anew(path: Path) -> pa.Table:
    parts = []
    with pq.ParquetFile(str(path)) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(TEXTS)):
            rows = zip(*(batch[name].to_pylist() for name in TEXTS), strict=True)
            parts.append(pa.Table.from_pylist([_derived(*row) for row in rows], schema=DERIVED_SCHEMA))
    return pa.concat_tables([DERIVED_SCHEMA.empty_table(), *parts])


DERIVED_SCHEMA = pa.schema([(PAIR_ID, pa.uint64()), (CHOSEN_LENGTH, pa.int32()), (REJECTED_LENGTH, pa.int32())])


def _derived(form: str, prompt: str, *answers: str | None) -> dict[str, Any]:
    lengths = [None if cell is None else len(text_of(decode(form, cell))) for cell in answers]
    return {
        PAIR_ID: pair_id(form, prompt, (cell for cell in answers if cell is not None)),
        CHOSEN_LENGTH: lengths[0],
        REJECTED_LENGTH: lengths[1],
    }


# Lengths and scores.


def length_gaps(table: pa.Table) -> pa.Array:
    """Chosen minus rejected, in characters; null for unpaired rows."""
    return pc.subtract(table[CHOSEN_LENGTH], table[REJECTED_LENGTH]).combine_chunks()


def margins(table: pa.Table) -> Floats:
    """Chosen minus rejected score, NaN where a side has none."""
    if not set(SCORES) <= set(table.column_names):
        return np.full(len(table), np.nan)
    chosen, rejected = (_floats(table[name]) for name in SCORES)
    return chosen - rejected


def pair_numbers(table: pa.Table) -> PairNumbers | None:
    """The numbers of some rows, given with the columns of `MEASURED` they have; None where no row is a pair."""
    chosen, rejected, margin = _floats(table[CHOSEN_LENGTH]), _floats(table[REJECTED_LENGTH]), margins(table)
    paired = np.isfinite(chosen) & np.isfinite(rejected)
    if not paired.any():
        return None
    gap, scored = chosen - rejected, np.isfinite(margin) & paired
    lengths = int(np.count_nonzero(gap[paired]))
    moments: dict[str, float] = {}
    correlation = None
    if scored.any():
        one, other = margin[scored], gap[scored]
        moments = {
            "margin_mean": float(one.mean()),
            "margin_sd": float(one.std()),
            "gap_mean": float(other.mean()),
            "gap_sd": float(other.std()),
        }
        if moments["margin_sd"] > 0 and moments["gap_sd"] > 0:
            correlation = float(np.mean((one - one.mean()) * (other - other.mean())) / (one.std() * other.std()))
    return PairNumbers(
        pairs=int(paired.sum()),
        of_two_lengths=lengths,
        chosen_longer=float(np.count_nonzero(gap[paired] > 0) / lengths) if lengths else None,
        chosen_length=float(chosen[paired].mean()),
        rejected_length=float(rejected[paired].mean()),
        scored=int(scored.sum()),
        wrong_way=float(np.mean(margin[scored] < 0)) if scored.any() else None,
        margin_length_correlation=correlation,
        **moments,
    )


def _floats(column: pa.ChunkedArray) -> Floats:
    values: Floats = pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy()
    return values


# Rows that contradict each other, brought together through files: a part of them is in memory at a time.


class Contradictions:
    """Counts rows whose `pair_id` another row has; given are rows of different content only.

    `folder` must not exist yet; about `rows` rows are expected. Above `ROWS_AT_ONCE` rows they go through files there,
    8 bytes a row, gone again once they are counted.
    """

    EXAMPLES = 20
    ROWS_AT_ONCE = 1 << 20

    def __init__(self, folder: Path, rows: int) -> None:
        self._parts = max(1, -(-rows // self.ROWS_AT_ONCE))
        self._files = Partitions(folder, np.dtype("u8")) if self._parts > 1 else None
        self._waiting: list[npt.NDArray[np.uint64]] = []
        self._rows_waiting = 0
        self.rows = 0
        self.examples: list[int] = []
        """Some `pair_id`s of rows that contradict each other, once they were counted."""

    def add(self, pair_ids: npt.NDArray[np.uint64]) -> None:
        """Adds rows; a row that was added before must not come again."""
        self._waiting.append(pair_ids)
        self._rows_waiting += len(pair_ids)
        self.rows += len(pair_ids)
        if self._files is not None and self._rows_waiting >= self.ROWS_AT_ONCE:
            self._write(self._files)

    def count(self) -> int:
        """How many rows contradict another."""
        if self._files is None:
            return self._count(self._take())
        self._write(self._files)
        return sum(self._count(self._files.take(part)) for part in range(self._parts))

    def _count(self, ids: npt.NDArray[np.uint64]) -> int:
        ids.sort()
        if not len(repeated := ids[1:][ids[1:] == ids[:-1]]):
            return 0
        groups = np.unique(repeated)
        self.examples += [int(one) for one in groups[: self.EXAMPLES - len(self.examples)]]
        return len(repeated) + len(groups)

    def _take(self) -> npt.NDArray[np.uint64]:
        ids = np.concatenate([np.empty(0, np.uint64), *self._waiting])
        self._waiting.clear()
        self._rows_waiting = 0
        return ids

    def _write(self, files: Partitions) -> None:
        ids = self._take()
        ids.sort()  # then the parts are in order, too, which is much cheaper to bring apart
        # ids are hashes, so their first 32 bits spread them evenly
        files.add(((ids >> np.uint64(32)) * np.uint64(self._parts) >> np.uint64(32)).astype(np.int64), ids)


# Reference log-probs a token, counted in bins: any number of answers in the same memory.

LOGPS = ("chosen_logp", "rejected_logp", "chosen_tokens", "rejected_tokens")
"""The columns of a reference's log-probs that are measured."""


class LogpCounts:
    """Counts both sides' reference log-probs a token."""

    def __init__(self) -> None:
        self._counts = {side: np.zeros(BINS, np.int64) for side in ("chosen", "rejected")}

    def add(self, table: pa.Table) -> None:
        """Adds scored pairs, given with the columns of `LOGPS`; a table without them adds nothing."""
        if set(LOGPS) <= set(table.column_names):
            for side, values in zip(self._counts, logps_a_token(table), strict=True):
                bins = (np.clip(values, None, 0.0) * (-1 / BIN)).astype(np.int64)
                self._counts[side] += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)

    def numbers(self) -> LogpNumbers | None:
        """What was counted; None for nothing."""
        counted = {side: np.trim_zeros(counts, "b").tolist() for side, counts in self._counts.items()}
        return LogpNumbers.of(counted) if any(counted.values()) else None


def logps_a_token(table: pa.Table) -> tuple[Floats, Floats]:
    """Of both sides, from the columns of `LOGPS`."""
    chosen, rejected, chosen_tokens, rejected_tokens = (_floats(table[name]) for name in LOGPS)
    return chosen / np.maximum(chosen_tokens, 1), rejected / np.maximum(rejected_tokens, 1)
