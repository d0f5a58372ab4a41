"""Stage `new_rows`: the champion on preference pairs that it never saw, before they train anything.

Tomorrow's data is the one test set that nobody can have trained on. The start checkpoint's log-probs of its rows are in
the reference cache already; those of the champion are computed once a sequence, through the same cache. An accuracy
that falls below the champion's own held-out accuracy says that the data has changed, or its labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.manifest import SPLIT_FILE, ManifestShard, called_now, read_manifest, source_of, sources_of
from alignment.data.rows import ROWS_FILE, SPLIT_AT, PreferenceRow, iter_rows, read_columns
from alignment.logprobs.effort import Ranks
from alignment.logprobs.reference import reference_pass
from alignment.logprobs.table import LOGPROBS_FILE, Written, logprobs_folder, logprobs_table
from alignment.logprobs.token_ids import ROWS_AT_ONCE
from alignment.models.runner import tf32_products
from alignment.stages.reference_logprobs import Scoring, reference_and_cache
from alignment.stages.stage import Context, Result, Stage, scored_by
from alignment.store import Artifact, MissingArtifact
from alignment.training.held_out_pairs import HeldOutPair, prefers, write_held_out
from eval.gate.held_out import HeldOut, against_reference, read_held_out
from eval.gate.metrics import ACCURACY
from eval.statistics import Mean, clustered_mean, weighted_difference
from eval.summaries import NewRowsSummary, SourceAccuracy

COLUMNS = ("row_id", "chosen_logp", "rejected_logp")
BySource = dict[str, list[HeldOutPair]]


class NewRowsRequest(Scoring):
    """`checkpoint` is the champion, `known` the manifest that it was trained on, and `manifest` the new one; `sources`
    are the names of the recipe's sources where there are several."""

    absent_by_default: ClassVar[frozenset[str]] = Scoring.absent_by_default | {"sources"}

    manifest: Artifact
    known: Artifact
    max_rows: int
    sources: tuple[str, ...] = ()


class NewRow(NamedTuple):
    """A row that the champion never saw, its prompt, its source (empty where there is one), and its log-probs under the
    start checkpoint in nats."""

    row_id: str
    prompt_id: str
    source: str
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
    rows, places, new, trained_prompts = _new_rows(request, context)
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
        trained_prompts=trained_prompts,
        measured=len(pairs),
        dropped=sum(told["dropped"].values()),
        cache_hits=told["cache_hits"],
        scored=told["scored"],
        **numbers(*_by_source(request, context, pairs, by_id)),
    )
    return Result(written.digest, summary)


def _by_source(
    request: NewRowsRequest, context: Context, pairs: Sequence[HeldOutPair], rows: Mapping[str, NewRow]
) -> tuple[BySource, BySource]:
    """The new pairs, and the held-out pairs of the champion's own training, by source."""
    new, before = BySource(), BySource()
    held_out, sources = _own_pairs(request, context), dict[str, str]()
    if request.sources:
        known = context.fetch(request.known)
        called = called_now(read_manifest(known), read_manifest(context.fetch(request.manifest)))
        sources = sources_of(known / SPLIT_FILE, [pair.row_id for pair in held_out], request.sources, called)
    for pair in pairs:
        new.setdefault(rows[pair.row_id].source, []).append(pair)
    for pair in held_out:
        before.setdefault(sources.get(pair.row_id, ""), []).append(pair)
    return new, before


def _own_pairs(request: NewRowsRequest, context: Context) -> list[HeldOutPair]:
    """The held-out pairs of the champion's own training, beside the checkpoint that the new rows are measured beside.

    A champion that was trained against the one before it has them beside that one: their log-probs under the start
    checkpoint are those of the new manifest's shards, as far as these have the rows still.
    """
    measured = read_held_out(context.store, request.checkpoint)
    pairs = [pair for pair in (measured.pairs if measured else []) if isinstance(pair, HeldOutPair)]
    if not pairs or scored_by(context.store.commit_of, request.known) is None:
        return pairs
    ids, beside = pa.array([pair.row_id for pair in pairs], pa.string()), dict[tuple[str, int, int], Any]()
    for shard in read_manifest(context.fetch(request.manifest)).shards:
        if shard.reference is not None:
            logps = logprobs_folder(context.fetch(shard.reference), shard.shard.digest) / LOGPROBS_FILE
            table = read_columns(logps, *COLUMNS, "chosen_tokens", "rejected_tokens")
            for row in table.filter(pc.is_in(table["row_id"], value_set=ids)).to_pylist():
                beside[row["row_id"], row["chosen_tokens"], row["rejected_tokens"]] = row
    # where the token policy changed since, a row is another sequence
    found = ((pair, beside.get((pair.row_id, pair.chosen_tokens, pair.rejected_tokens))) for pair in pairs)
    return [
        replace(pair, ref_chosen_logp=row["chosen_logp"], ref_rejected_logp=row["rejected_logp"])
        for pair, row in found
        if row is not None
    ]


class Found(NamedTuple):
    """The new rows that are measured, the shard files that hold them, and how many rows are new; beside these, how many
    more are of prompts that the champion was trained on."""

    rows: list[NewRow]
    places: list[Path]
    new: int
    trained_prompts: int


def _new_rows(request: NewRowsRequest, context: Context) -> Found:
    """Only shards that the known manifest does not have are read for rows, and of all only columns without text.

    Another pair of a prompt that the champion was trained on is no test of it: a ranking's other pairs are easier than
    those of an unseen prompt, and a pair whose label was corrected is the opposite of what was learnt.
    """
    known_folder, folder = context.fetch(request.known), context.fetch(request.manifest)
    pinned, current = read_manifest(known_folder), read_manifest(folder)
    known_shards = {shard.shard.digest for shard in pinned.shards}
    known = pq.read_table(known_folder / SPLIT_FILE, columns=["row_id", "split"])
    trained, tables, places = None, [], list[Path]()
    for shard in current.shards:
        if shard.shard.digest in known_shards or shard.reference is None:
            continue
        if trained is None:
            trained = _trained_prompts(context, [*pinned.shards, *current.shards], known)
        places.append(context.fetch(shard.shard) / ROWS_FILE)
        logps = logprobs_folder(context.fetch(shard.reference), shard.shard.digest) / LOGPROBS_FILE
        scored = read_columns(logps, *COLUMNS)
        scored = scored.filter(pc.invert(pc.is_in(scored["row_id"], value_set=known["row_id"].combine_chunks())))
        joined = scored.join(_prompts(places[-1]), "row_id", join_type="inner")
        source = pa.repeat(source_of(shard.name, request.sources), len(joined))
        tables.append(joined.append_column("source", source))
    if trained is None or not sum(map(len, tables)):
        return Found([], [], 0, 0)
    table = pa.concat_tables(tables).sort_by("row_id")
    ids = table["row_id"].to_pylist()
    table = table.take([place for place, row_id in enumerate(ids) if not place or ids[place - 1] != row_id])
    fresh = table.filter(pc.invert(pc.is_in(table["prompt"], value_set=trained)))
    chosen = fresh.slice(0, request.max_rows)
    columns = [chosen[name].to_pylist() for name in ("row_id", "prompt", "source", "chosen_logp", "rejected_logp")]
    return Found([NewRow(*cells) for cells in zip(*columns, strict=True)], places, len(fresh), len(table) - len(fresh))


def _trained_prompts(context: Context, shards: Sequence[ManifestShard], split: pa.Table) -> pa.Array:
    """The prompts of the rows that a split trains on, by the shards that may hold them; an erased one has none."""
    train = split["row_id"].filter(pc.equal(split["split"], "train")).combine_chunks()
    found: list[pa.Array] = []
    for shard in {shard.shard.digest: shard.shard for shard in shards}.values():
        with suppress(MissingArtifact):
            prompts = _prompts(context.fetch(shard) / ROWS_FILE)
            found.append(prompts["prompt"].filter(pc.is_in(prompts["row_id"], value_set=train)).combine_chunks())
    return pa.concat_arrays([*found, pa.array([], pa.string())]).unique()


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


def numbers(new: Mapping[str, Sequence[HeldOutPair]], held_out: Mapping[str, Sequence[HeldOutPair]]) -> dict[str, Any]:
    """The means and intervals of `NewRowsSummary`, from the new pairs and those of the champion's own training, both by
    source.

    Sources differ in how hard they are, and a day that brought rows of the hardest alone would pass for a drift. So a
    source's new pairs are compared with held-out pairs of it. Those of a source without any are compared with nothing.
    """
    pairs = [pair for part in new.values() for pair in part]
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
    own = {source: _accuracy(part) for source, part in held_out.items()}
    now = {source: _accuracy(part) for source, part in sorted(new.items())}
    named = {
        source: SourceAccuracy(
            measured=mean.n, accuracy=mean.value, held_out_accuracy=own[source].value if source in own else None
        )
        for source, mean in now.items()
        if source
    }
    if named:
        found["sources"] = named
    shared = {source: mean for source, mean in now.items() if source in own}
    if not shared:
        return found
    total = sum(mean.n for mean in shared.values())
    parts = [(mean.n / total, own[source], mean) for source, mean in shared.items()]
    drift = weighted_difference(parts)
    return found | {
        "held_out_accuracy": math.fsum(weight * before.value for weight, before, _ in parts),
        "drift": drift.mean.value,
        "drift_low": drift.low,
        "drift_high": drift.high,
    }


def _accuracy(pairs: Sequence[HeldOutPair]) -> Mean:
    values = [prefers(pair.chosen_ratio, pair.rejected_ratio) for pair in pairs]
    return clustered_mean(values, [pair.prompt_id for pair in pairs])


STAGE = Stage("new_rows", 3, NewRowsRequest, run, device="gpu", elastic=True)
