"""What is new and what is gone: rows of the manifest that was trained on, and of the one that would be pinned now."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.manifest import SPLIT_FILE, Manifest, read_manifest
from alignment.data.mixing import BEYOND, place_in_draw, quotas
from alignment.data.rows import ROWS_FILE, SPLIT_AT, are_held_out, read_columns
from alignment.stages.preference_manifest import ManifestRequest
from alignment.store import Artifact, Store
from assets.preference_manifest import WITHDRAWN


def settings_of(request: ManifestRequest) -> object:
    """What a manifest asks for beside its shards: of a mix its numbers. How many rows a point of a sweep takes is that
    point's."""
    numbers = tuple(mix.model_copy(update={"shards": ()}) for mix in request.mix)
    plain: dict[str, object] = {"shards": {}, "references": {}, "left_out": {}, "mix": numbers, "train_rows": None}
    return request.model_copy(update=plain).identity()


def changed_rows(
    store: Store, manifest: Artifact, request: ManifestRequest, withdrawn: frozenset[str] = frozenset()
) -> tuple[int, int]:
    """Rows to train on that a manifest did not give, or gave with other numbers where training reads these, and those
    of it (to train on, or held out) that the request's shards have no more, or that are `withdrawn`.

    Without a mix only shards that are not in both are read. With one it decides which rows of its sources are given, as
    the stage does, but for those that are dropped by name. Rows of a shard that is only late are not gone.
    """
    folder = store.fetch(manifest)
    pinned = read_manifest(folder)
    known = {shard.shard.digest for shard in pinned.shards}
    current = {shard.digest for shard in request.shards.values()}
    late = {name for name, why in request.left_out.items() if why != WITHDRAWN}
    current |= {shard.shard.digest for shard in pinned.shards if shard.name in late}
    mixed = {digest for mix in request.mix for digest in mix.shards}
    unmixed = [_rows(store, one, request) for one in request.shards.values() if one.digest not in known | mixed]
    added = [table["row_id"].filter(pc.invert(table[APART])) for table in unmixed] + _drawn(store, request)
    new = pa.chunked_array([chunk for column in added for chunk in column.chunks], pa.string()).unique()
    old = _gone_from(folder / SPLIT_FILE, pinned, current, withdrawn)
    corrected = _corrected(store, pinned, request) if request.reads_numbers else 0
    if not len(new) and not len(old):
        return corrected, 0
    split = pq.read_table(folder / SPLIT_FILE, columns=["row_id", "reason"])
    given = split.filter(pc.fill_null(pc.not_equal(split["reason"], BEYOND), True))["row_id"]
    kept = [_row_ids(store, one) for one in request.shards.values()] if len(old) else []
    still = pa.chunked_array(kept, pa.string())
    still = still.filter(pc.invert(pc.is_in(still, value_set=pa.array(sorted(withdrawn), pa.string()))))
    return _count_outside(new, given) + corrected, _count_outside(old, still)


APART = "apart"
NUMBERS = ("chosen_score", "rejected_score", "weight", "margin")
"""The columns of a row's own numbers."""


def _rows(store: Store, shard: Artifact, request: ManifestRequest) -> pa.Table:
    """A shard's row ids, and whether each is held out; none is where a shard of an earlier version does not say."""
    table = read_columns(store.fetch(shard) / ROWS_FILE, "row_id", SPLIT_AT)
    said = SPLIT_AT in table.column_names
    apart = are_held_out(table[SPLIT_AT], request.held_out_fraction) if said else pa.array([False] * len(table))
    return pa.table({"row_id": table["row_id"], APART: apart})


def _drawn(store: Store, request: ManifestRequest) -> list[pa.ChunkedArray]:
    """The rows to train on that each mix draws from its shards."""
    shards = {one.digest: one for one in request.shards.values()}
    tables = [
        pa.concat_tables([_rows(store, shards[one], request) for one in mix.shards])
        .group_by("row_id")
        .aggregate([(APART, "max")])
        for mix in request.mix
    ]
    found = []
    for table, mix, most in zip(
        tables, request.mix, quotas([len(table) for table in tables], request.mix), strict=True
    ):
        places = [place_in_draw(mix.seed, row_id) for row_id in table["row_id"].to_pylist()]
        drawn = table.take(np.argsort(np.array(places, np.uint64))[:most])
        found.append(drawn["row_id"].filter(pc.invert(drawn[f"{APART}_max"])))
    return found


def _row_ids(store: Store, shard: Artifact) -> pa.Array:
    return read_columns(store.fetch(shard) / ROWS_FILE, "row_id")["row_id"].combine_chunks()


def _corrected(store: Store, pinned: Manifest, request: ManifestRequest) -> int:
    """Rows of replaced shards that have another score, weight or margin in the shards in their place."""
    before = {shard.shard.digest: shard.shard for shard in pinned.shards}
    now = {one.digest: one for one in request.shards.values()}

    def numbers(shards: Iterable[Artifact]) -> dict[str, tuple[float | None, ...]]:
        read = (read_columns(store.fetch(one) / ROWS_FILE, "row_id", *NUMBERS).to_pylist() for one in shards)
        return {row["row_id"]: tuple(map(row.get, NUMBERS)) for rows in read for row in rows}  # older shards lack some

    old = numbers(one for digest, one in before.items() if digest not in now)
    new = numbers(one for digest, one in now.items() if digest not in before) if old else {}
    return sum(row_id in old and old[row_id] != values for row_id, values in new.items())


def _gone_from(split: Path, pinned: Manifest, current: set[str], withdrawn: frozenset[str]) -> pa.ChunkedArray:
    """Rows that a manifest gave to train on or held out, in shards that are not current any more, or withdrawn."""
    gone = [shard.name for shard in pinned.shards if shard.shard.digest not in current]
    of_gone = pc.field("shard").isin(pa.array(gone, pa.string()))
    these = of_gone | pc.field("row_id").isin(pa.array(sorted(withdrawn), pa.string()))
    return pq.read_table(split, columns=["row_id"], filters=these & (pc.field("split") != "dropped"))["row_id"]


def _count_outside(rows: pa.Array | pa.ChunkedArray, others: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.invert(pc.is_in(rows, value_set=others.unique()))).as_py() or 0)
