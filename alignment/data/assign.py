"""Where every row of some shards goes: train, held out, or dropped for a reason; one shard in memory at a time."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alignment.data.duplicates import UNIQUE, first_shards
from alignment.data.manifest import SPLIT_SCHEMA
from alignment.data.measure import LOGPS, Floats, length_gaps, logps_a_token, measured_columns
from alignment.data.overlap import ItemRuns, overlap
from alignment.data.rows import (
    CHOSEN_LENGTH,
    PAIR_ID,
    REJECTED_LENGTH,
    ROWS_FILE,
    SPLIT_AT,
    are_held_out,
    read_columns,
    split_at,
)
from alignment.data.validate import DUPLICATE, reason_counts
from alignment.data.words import near_duplicates
from alignment.errors import BadInput
from alignment.store import CorruptArtifact


@dataclass(frozen=True)
class ShardFiles:
    """A shard's folder and that of its reference (None for a reference-free method)."""

    name: str
    rows: int
    folder: Path
    reference: Path | None


LENGTH_GAP = "answers differ in length by more than preferences.max_length_gap"
LOW_LOGP = "reference log-prob a token below preferences.min_reference_logp"
NEAR_DUPLICATE = "near-duplicate"
HOLDS_ITEM = "holds an item of"


@dataclass(frozen=True)
class Filters:
    """Rows that are left out by name; by default none.

    `max_length_gap` in characters, `min_reference_logp` in nats a token of either side, `near_duplicates` the
    similarity (0 to 1) from which a row repeats an earlier one, `items` evaluation items that no row may hold.
    """

    max_length_gap: int | None = None
    min_reference_logp: float | None = None
    near_duplicates: float | None = None
    items: ItemRuns | None = None


Scored = tuple[Floats, Floats]
"""Reference log-probs a token of the chosen and of the rejected side, a value a row; NaN where it was dropped."""


def assign(
    shards: Sequence[ShardFiles],
    held_out_fraction: float,
    work: Path,
    filters: Filters | None = None,
    *,
    pair_ids: bool = False,
) -> Iterator[pa.Table]:
    """The places of each shard's rows in turn (`SPLIT_SCHEMA`), in source order.

    A row that several shards hold counts in the first of them only. `work` is a folder for scratch files: what an
    interrupted pass left there is removed. With `pair_ids` the tables have that column, too. Raises
    `CorruptArtifact` for a shard that has not the rows it should have, and `BadInput` for one whose reference does not
    account for all of them.
    """
    filters = filters or Filters()
    scratch = work / "row_ids"
    shutil.rmtree(scratch, ignore_errors=True)
    sizes = [shard.rows for shard in shards]
    ids = (_row_ids(shard) for shard in shards)
    repeats = first_shards(ids, sizes, scratch)
    near = None
    if filters.near_duplicates is not None:
        alike = work / "near_duplicates"
        shutil.rmtree(alike, ignore_errors=True)
        near = near_duplicates([shard.folder for shard in shards], sizes, filters.near_duplicates, alike)
    reasons = pa.array([f"{DUPLICATE} of shard {shard.name}" for shard in shards])
    start = 0
    for shard, first in zip(shards, repeats, strict=True):
        rows = read_columns(shard.folder / ROWS_FILE, "row_id", SPLIT_AT, *([PAIR_ID] if pair_ids else []))
        row_ids = rows["row_id"].combine_chunks()
        dropped, scored = _dropped(shard, row_ids, LOGPS if filters.min_reference_logp is not None else ())
        duplicate = reasons.take(pa.array(first, mask=first == UNIQUE))
        found = [duplicate, dropped, *_filtered(shard, scored, filters)]
        if near is not None:
            found.append(_named(np.asarray(near[start : start + shard.rows], bool), NEAR_DUPLICATE))
        reason = pc.coalesce(*found)
        where = rows[SPLIT_AT].combine_chunks() if SPLIT_AT in rows.column_names else _counted_anew(shard)
        places = _places(shard, row_ids, reason, where, held_out_fraction)
        if pair_ids:
            known = rows if PAIR_ID in rows.column_names else measured_columns(shard.folder, PAIR_ID)
            places = places.append_column(PAIR_ID, known[PAIR_ID])
        yield places
        start += shard.rows
    if near is not None:
        del near
        shutil.rmtree(work / "near_duplicates")


def _filtered(shard: ShardFiles, scored: Scored | None, filters: Filters) -> Iterator[pa.Array]:
    """Why each row is left out by a filter, null where it is not."""
    if filters.max_length_gap is not None:
        gaps = length_gaps(measured_columns(shard.folder, CHOSEN_LENGTH, REJECTED_LENGTH))
        too_far = pc.fill_null(pc.greater(pc.abs(gaps), filters.max_length_gap), False)
        yield _named(too_far.to_numpy(zero_copy_only=False), LENGTH_GAP)
    if filters.min_reference_logp is not None and scored is not None:
        yield _named(np.minimum(*scored) < filters.min_reference_logp, LOW_LOGP)
    if filters.items is not None:
        held = overlap(shard.folder, filters.items)
        for suite, places in held.rows.items():
            holds = np.zeros(shard.rows, bool)
            holds[places] = True
            yield _named(holds, f"{HOLDS_ITEM} {suite}")


def _named(which: npt.NDArray[np.bool_], reason: str) -> pa.Array:
    return pa.array([None, reason], pa.string()).take(pa.array(which.astype(np.int8)))


def _row_ids(shard: ShardFiles) -> pa.ChunkedArray:
    row_ids = read_columns(shard.folder / ROWS_FILE, "row_id")["row_id"]
    if len(row_ids) != shard.rows:
        raise CorruptArtifact(f"shard {shard.name} holds {len(row_ids)} rows, and its record says {shard.rows}")
    return row_ids


def _places(
    shard: ShardFiles, row_ids: pa.Array, reason: pa.Array, where: pa.Array, held_out_fraction: float
) -> pa.Table:
    kept = pc.if_else(are_held_out(where, held_out_fraction), "held_out", "train")
    cells = {
        "row_id": row_ids,
        "shard": pa.repeat(shard.name, shard.rows),
        "split": pc.if_else(pc.is_valid(reason), "dropped", kept),
        "reason": reason,
    }
    return pa.table(cells, schema=SPLIT_SCHEMA)


def _counted_anew(shard: ShardFiles) -> pa.Array:
    """Where each prompt stands, for a shard of an earlier version: its source may be gone, so it cannot be asked to
    note it."""
    rows = read_columns(shard.folder / ROWS_FILE, "prompt", "form")
    cells = zip(rows["prompt"].to_pylist(), rows["form"].to_pylist(), strict=True)
    return pa.array([split_at(prompt, form) for prompt, form in cells], pa.float64())


def _dropped(shard: ShardFiles, row_ids: pa.Array, columns: Sequence[str]) -> tuple[pa.Array, Scored | None]:
    """Why the reference dropped each row, null where it did not, and the log-probs a token of the others if `columns`
    are those of `LOGPS`; raises unless it accounts for all rows."""
    if shard.reference is None:
        return pa.nulls(len(row_ids), pa.string()), None
    dropped = read_columns(shard.reference / "dropped.parquet", "row_id", "reason")
    scored = read_columns(shard.reference / "logprobs.parquet", "row_id", *columns)
    place = pc.index_in(row_ids, value_set=dropped["row_id"])
    is_scored = pc.is_null(place)
    # nearly always the rows stand in the shard's order, which is cheaper to see than to look each of them up
    if not scored["row_id"].combine_chunks().equals(row_ids.filter(is_scored)):
        found = pc.index_in(row_ids, value_set=scored["row_id"])
        if missing := row_ids.filter(pc.and_(is_scored, pc.is_null(found))).to_pylist():
            raise BadInput(
                f"the reference log-probs of shard {shard.name} lack {len(missing)} of its {len(row_ids)} rows"
                f" (first: {min(missing)}); score the shard again"
            )
        scored = scored.take(found.filter(is_scored))
    reason = dropped["reason"].take(place).combine_chunks()
    if not columns:
        return reason, None
    if not set(columns) <= set(scored.column_names):
        raise BadInput("goes with pairs, and these rows are unpaired", field="preferences.min_reference_logp")
    values = np.full((2, len(row_ids)), np.nan)
    values[:, is_scored.to_numpy(zero_copy_only=False)] = logps_a_token(scored)
    return reason, (values[0], values[1])


# How many rows of a manifest went where.


class Tally:
    """Counts places (`SPLIT_SCHEMA`) as they come."""

    def __init__(self) -> None:
        self._splits: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def add(self, places: pa.Table) -> None:
        """Counts the places of a shard's rows, a table with the columns of a split."""
        for column, counter in (("split", self._splits), ("reason", self._reasons)):
            for found in places[column].drop_null().value_counts():
                counter[found["values"].as_py()] += found["counts"].as_py()

    @property
    def counts(self) -> dict[str, int]:
        """A manifest's `counts`: rows, and how many of them went where."""
        return {"rows": self._splits.total(), **{name: self._splits[name] for name in ("train", "held_out", "dropped")}}

    @property
    def dropped(self) -> dict[str, int]:
        """{reason: rows}."""
        return reason_counts(self._reasons)
