"""How many rows of each source are kept, and which: drawn by a hash, so that neither order nor file names matter. And
which pairs are kept that a policy disagrees on most."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from math import ceil, floor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from alignment.data.measure import Floats

BEYOND = "beyond the rows that are drawn from its source"


class Mix(BaseModel):
    """One source: the digests of its shards (sorted), its weight among those that have one, and its most rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: tuple[str, ...]
    weight: float | None = None
    max_rows: int | None = None
    seed: int = 0


def place_in_draw(seed: int, row_id: str) -> int:
    """Where a row stands in the draw, 64 bits: the rows with the lowest are taken."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {row_id}".encode(), digest_size=8).digest(), "big")


def mixed(
    assigned: Callable[[bool], Iterator[pa.Table]], digests: Sequence[str], mixes: Sequence[Mix]
) -> Iterator[pa.Table]:
    """The places of each shard's rows (`SPLIT_SCHEMA`), those beyond what the mixes keep of a source dropped by name.

    `assigned` gives the places in the order of the shards' `digests`; where there are mixes it is called twice, the
    last time with True. Rows that are dropped for another reason do not count.
    """
    if not mixes:
        yield from assigned(True)
        return
    of_shard = {digest: index for index, mix in enumerate(mixes) for digest in mix.shards}
    draws: list[list[npt.NDArray[np.uint64]]] = [[] for _ in mixes]
    for digest, places in zip(digests, assigned(False), strict=True):
        if (index := of_shard.get(digest)) is not None:
            kept = pc.not_equal(places["split"], "dropped")
            draws[index].append(_draw(places["row_id"].filter(kept), mixes[index].seed))
    together = [np.sort(np.concatenate(draw)) if draw else np.zeros(0, np.uint64) for draw in draws]
    numbers = quotas([len(draw) for draw in together], mixes)
    for digest, places in zip(digests, assigned(True), strict=True):
        index = of_shard.get(digest)
        if index is None or numbers[index] >= len(together[index]):
            yield places
            continue
        limit = together[index][numbers[index]]  # the first that is left out
        beyond = pc.and_(
            pc.not_equal(places["split"], "dropped"), pa.array(_draw(places["row_id"], mixes[index].seed) >= limit)
        )
        cells = {
            "split": pc.if_else(beyond, "dropped", places["split"]),
            "reason": pc.if_else(beyond, BEYOND, places["reason"]),
        }
        yield pa.table({name: cells.get(name, places[name]) for name in places.column_names}, schema=places.schema)


def quotas(rows: Sequence[int], mixes: Sequence[Mix]) -> list[int]:
    """Rows that are kept of each source: at most `max_rows`, and of those with weights as many as their shares
    allow."""
    most = [count if mix.max_rows is None else min(count, mix.max_rows) for count, mix in zip(rows, mixes, strict=True)]
    weights = [mix.weight for mix in mixes]
    unit = min((count / weight for count, weight in zip(most, weights, strict=True) if weight), default=0.0)
    # a hair above, so that rounding takes no row from the source that sets the scale
    return [
        count if not weight else min(count, floor(weight * unit + 1e-6))
        for count, weight in zip(most, weights, strict=True)
    ]


def _draw(row_ids: pa.ChunkedArray, seed: int) -> npt.NDArray[np.uint64]:
    return np.array([place_in_draw(seed, row_id) for row_id in row_ids.to_pylist()], np.uint64)


# The pairs on which a policy and the checkpoint that it came from disagree most.

AGREED = "not among the pairs that optimise.select takes"
NOT_SWEPT = "beyond the training rows of this point of the sweep"


def margins_of(logprobs: pa.Table, row_ids: pa.ChunkedArray) -> Floats:
    """log π(chosen) − log π(rejected) of these rows, from the columns of a checkpoint's log-probs."""
    found = logprobs.take(pc.index_in(row_ids, value_set=logprobs["row_id"]))
    return np.asarray(pc.subtract(found["chosen_logp"], found["rejected_logp"]).to_numpy(), np.float64)


def smallest(row_ids: pa.ChunkedArray, margins: Sequence[Floats], share: float) -> pa.Array:
    """Ids of the share of rows (rounded up) with the smallest margins, ties by row id."""
    ids = np.array(row_ids.to_pylist(), dtype=np.bytes_)
    order = np.lexsort((ids, np.concatenate(margins) if margins else np.zeros(0)))
    most = ceil(share * len(order) - 1e-9)  # 0.2 of 10 rows are 2, whatever 0.2 is in binary
    return pa.array([row_id.decode() for row_id in ids[order[:most]]], pa.string())
