"""Stage `new_rows`: the champion on preference pairs that it never saw, before they train anything.

Tomorrow's data is the one test set that nobody can have trained on. The start checkpoint's log-probs of its rows are in
the reference cache already; those of the champion are computed once a sequence, through the same cache. An accuracy
that falls below the champion's own held-out accuracy says that the data has changed, or its labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.manifest import SPLIT_FILE, read_manifest
from alignment.data.rows import ROWS_FILE, SPLIT_AT, PreferenceRow, iter_rows, read_columns
from alignment.logprobs.effort import Ranks
from alignment.logprobs.reference import reference_pass
from alignment.logprobs.table import LOGPROBS_FILE, Written, logprobs_folder, logprobs_table
from alignment.logprobs.token_ids import ROWS_AT_ONCE
from alignment.models.runner import tf32_products
from alignment.stages.reference_logprobs import Scoring, reference_and_cache
from alignment.stages.stage import Context, Result, Stage
from alignment.store import Artifact
from alignment.training.held_out_pairs import HeldOutPair, HeldOutRow, prefers, write_held_out
from eval.gate.held_out import HeldOut, against_reference, read_held_out
from eval.gate.metrics import ACCURACY
from eval.statistics import Mean, clustered_mean, share_difference
from eval.summaries import NewRowsSummary

COLUMNS = ("row_id", "chosen_logp", "rejected_logp")


class NewRowsRequest(Scoring):
    """`checkpoint` is the champion, `known` the manifest that it was trained on, and `manifest` the new one."""

    manifest: Artifact
    known: Artifact
    max_rows: int


class NewRow(NamedTuple):
    """A row that the champion never saw, its prompt, and its log-probs under the start checkpoint in nats."""

    row_id: str
    prompt_id: str
    chosen_logp: float
    rejected_logp: float


def run(request: NewRowsRequest, context: Context) -> Result:
    """Writes held_out.parquet of the new rows, in the form of a policy's held-out pairs.

    The data version is over row ids and sequence keys, never over the floats. Several processes share the rows.
    """
    ranks = Ranks(context.rank, context.world_size)
    with ranks.together(), tf32_products(request.tf32):
        return _measure(request, context, ranks)


def _measure(request: NewRowsRequest, context: Context, ranks: Ranks) -> Result:
    rows, places, new = _new_rows(request, context)
    reference, cache = reference_and_cache(request, context)
    written, pairs = Written(reference.fingerprint), list[HeldOutPair]()
    by_id = {row.row_id: row for row in rows}

    def read(wanted: set[str]) -> Iterator[PreferenceRow]:
        for place in places:
            yield from (row for row in iter_rows(place) if row.row_id in wanted)

    ids = sorted(by_id)
    for start in range(0, len(ids), ROWS_AT_ONCE):
        part = ids[start : start + ROWS_AT_ONCE]
        done = reference_pass(part, partial(read, set(part)), reference, cache, ranks)
        if done is not None:
            written.add(done)
            pairs += _pairs(logprobs_table(done), by_id)
    if ranks.rank:
        return Result("")
    cache.compact()
    write_held_out(context.out, pairs)
    told = written.summary()
    summary = NewRowsSummary(
        new=new,
        measured=len(pairs),
        dropped=sum(told["dropped"].values()),
        cache_hits=told["cache_hits"],
        scored=told["scored"],
        **numbers(pairs, read_held_out(context.store, request.checkpoint)),
    )
    return Result(written.digest, summary)


def _new_rows(request: NewRowsRequest, context: Context) -> tuple[list[NewRow], list[Path], int]:
    """The new rows that are measured, the shard files that hold them, and how many new rows there are.

    Only shards that the known manifest does not have are read, and of these only columns without text.
    """
    known_folder, folder = context.fetch(request.known), context.fetch(request.manifest)
    known_shards = {shard.shard.digest for shard in read_manifest(known_folder).shards}
    known = pq.read_table(known_folder / SPLIT_FILE, columns=["row_id"])["row_id"].unique()
    tables, places = [], []
    for shard in read_manifest(folder).shards:
        if shard.shard.digest in known_shards or shard.reference is None:
            continue
        places.append(context.fetch(shard.shard) / ROWS_FILE)
        logps = logprobs_folder(context.fetch(shard.reference), shard.shard.digest) / LOGPROBS_FILE
        scored = read_columns(logps, *COLUMNS)
        scored = scored.filter(pc.invert(pc.is_in(scored["row_id"], value_set=known)))
        tables.append(scored.join(_prompts(places[-1]), "row_id", join_type="inner"))
    if not tables or not sum(map(len, tables)):
        return [], [], 0
    table = pa.concat_tables(tables).sort_by("row_id")
    ids = table["row_id"].to_pylist()
    first = [place for place, row_id in enumerate(ids) if not place or ids[place - 1] != row_id]
    chosen = table.take(first[: request.max_rows])
    columns = [chosen[name].to_pylist() for name in ("row_id", "prompt", "chosen_logp", "rejected_logp")]
    return [NewRow(*cells) for cells in zip(*columns, strict=True)], places, len(first)


def _prompts(place: Path) -> pa.Table:
    """Row ids with what tells prompts apart: where the prompt stands by its hash; a shard of an earlier version does
    not say, and each of its rows is taken for a prompt of its own."""
    table = read_columns(place, "row_id", SPLIT_AT)
    prompts = pc.cast(table[SPLIT_AT], pa.string()) if SPLIT_AT in table.column_names else table["row_id"]
    return pa.table({"row_id": table["row_id"], "prompt": prompts})


def _pairs(table: pa.Table, rows: dict[str, NewRow]) -> Iterator[HeldOutPair]:
    for cells in table.to_pylist():
        row = rows[cells["row_id"]]
        yield HeldOutPair(
            row_id=row.row_id,
            prompt_id=row.prompt_id,
            **{f"{side}_{what}": cells[f"{side}_{what}"] for side in SIDES for what in ("key", "logp", "tokens")},
            ref_chosen_logp=row.chosen_logp,
            ref_rejected_logp=row.rejected_logp,
        )


SIDES = ("chosen", "rejected")


def numbers(pairs: Sequence[HeldOutPair], held_out: HeldOut | None) -> dict[str, Any]:
    """The means and intervals of `NewRowsSummary`; `held_out` are the pairs of the champion's own training."""
    compared = against_reference(HeldOut(list(pairs), "")) if pairs else {}
    if isinstance(compared, str) or not compared:
        return {}
    accuracy, ranking = compared[ACCURACY], compared["ranking_accuracy"]
    half = 0.5  # the start checkpoint's own accuracy by its own reward
    low, high = accuracy.ci95 or (None, None)
    found: dict[str, Any] = {
        "accuracy": accuracy.candidate,
        "accuracy_low": None if low is None else half + low,
        "accuracy_high": None if high is None else half + high,
        "margin": compared["margin"].candidate,
        "ranking_accuracy": ranking.candidate,
        "start_ranking_accuracy": ranking.baseline,
    }
    if held_out is None:
        return found
    before = _accuracy(held_out.pairs)
    drift = share_difference(before, _accuracy(pairs))
    return found | {
        "held_out_accuracy": before.value,
        "drift": drift.mean.value,
        "drift_low": drift.low,
        "drift_high": drift.high,
    }


def _accuracy(rows: Sequence[HeldOutRow]) -> Mean:
    pairs = [row for row in rows if isinstance(row, HeldOutPair)]
    values = [prefers(pair.chosen_ratio, pair.rejected_ratio) for pair in pairs]
    return clustered_mean(values, [pair.prompt_id for pair in pairs])


STAGE = Stage("new_rows", 1, NewRowsRequest, run, device="gpu", elastic=True)
