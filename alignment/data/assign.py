"""Where every row of some shards goes: train, held out, or dropped for a reason; one shard in memory at a time."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from alignment.data.duplicates import UNIQUE, first_shards
from alignment.data.manifest import SPLIT_SCHEMA
from alignment.data.rows import ROWS_FILE, SPLIT_AT, are_held_out, read_columns, split_at
from alignment.data.validate import DUPLICATE, reason_counts
from alignment.errors import BadInput
from alignment.store import CorruptArtifact


@dataclass(frozen=True)
class ShardFiles:
    """A shard's folder and that of its reference (None for a reference-free method)."""

    name: str
    rows: int
    folder: Path
    reference: Path | None


def assign(shards: Sequence[ShardFiles], held_out_fraction: float, work: Path) -> Iterator[pa.Table]:
    """The places of each shard's rows in turn (`SPLIT_SCHEMA`), in source order.

    A row that several shards hold counts in the first of them only. `work` is a folder for scratch files: what an
    interrupted pass left there is removed. Raises `CorruptArtifact` for a shard that has not the rows it should
    have, and `BadInput` for one whose reference does not account for all of them.
    """
    scratch = work / "row_ids"
    shutil.rmtree(scratch, ignore_errors=True)
    ids = (_row_ids(shard) for shard in shards)
    repeats = first_shards(ids, [shard.rows for shard in shards], scratch)
    reasons = pa.array([f"{DUPLICATE} of shard {shard.name}" for shard in shards])
    for shard, first in zip(shards, repeats, strict=True):
        yield _places(shard, reasons.take(pa.array(first, mask=first == UNIQUE)), held_out_fraction)


def _row_ids(shard: ShardFiles) -> pa.ChunkedArray:
    row_ids = read_columns(shard.folder / ROWS_FILE, "row_id")["row_id"]
    if len(row_ids) != shard.rows:
        raise CorruptArtifact(f"shard {shard.name} holds {len(row_ids)} rows, and its record says {shard.rows}")
    return row_ids


def _places(shard: ShardFiles, duplicate: pa.Array, held_out_fraction: float) -> pa.Table:
    rows = read_columns(shard.folder / ROWS_FILE, "row_id", SPLIT_AT)
    row_ids = rows["row_id"].combine_chunks()
    dropped, reason = _dropped(shard, row_ids)
    where = rows[SPLIT_AT].combine_chunks() if SPLIT_AT in rows.column_names else _counted_anew(shard)
    kept = pc.if_else(are_held_out(where, held_out_fraction), "held_out", "train")
    cells = {
        "row_id": row_ids,
        "shard": pa.repeat(shard.name, shard.rows),
        "split": pc.if_else(pc.or_(pc.is_valid(duplicate), dropped), "dropped", kept),
        "reason": pc.coalesce(duplicate, reason),
    }
    return pa.table(cells, schema=SPLIT_SCHEMA)


def _counted_anew(shard: ShardFiles) -> pa.Array:
    """Where each prompt stands, for a shard of an earlier version: its source may be gone, so it cannot be asked to
    note it."""
    rows = read_columns(shard.folder / ROWS_FILE, "prompt", "form")
    cells = zip(rows["prompt"].to_pylist(), rows["form"].to_pylist(), strict=True)
    return pa.array([split_at(prompt, form) for prompt, form in cells], pa.float64())


def _dropped(shard: ShardFiles, row_ids: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Which rows the reference dropped, and why; raises unless it accounts for all of them."""
    if shard.reference is None:
        return pa.repeat(False, len(row_ids)), pa.nulls(len(row_ids), pa.string())
    dropped = read_columns(shard.reference / "dropped.parquet", "row_id", "reason")
    scored = read_columns(shard.reference / "logprobs.parquet", "row_id")["row_id"]
    place = pc.index_in(row_ids, value_set=dropped["row_id"])
    known = pc.or_(pc.is_valid(place), pc.is_in(row_ids, value_set=scored))
    if missing := row_ids.filter(pc.invert(known)).to_pylist():
        raise BadInput(
            f"the reference log-probs of shard {shard.name} lack {len(missing)} of its {len(row_ids)} rows"
            f" (first: {min(missing)}); score the shard again"
        )
    return pc.is_valid(place), dropped["reason"].take(place).combine_chunks()


# How many rows of a manifest went where.


class Tally:
    """Counts places (`SPLIT_SCHEMA`) as they come."""

    def __init__(self) -> None:
        self._splits: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def add(self, places: pa.Table) -> None:
        for column, counter in (("split", self._splits), ("reason", self._reasons)):
            for found in places[column].drop_null().value_counts():
                counter[found["values"].as_py()] += found["counts"].as_py()

    @property
    def counts(self) -> dict[str, int]:
        return {"rows": self._splits.total(), **{name: self._splits[name] for name in ("train", "held_out", "dropped")}}

    @property
    def dropped(self) -> dict[str, int]:
        return reason_counts(self._reasons)
