"""`preference_manifest`: the pinned set of rows that a policy is trained on, and which of them are held out.

Every row of every shard stands in split.parquet exactly once: train, held_out, or dropped with a reason.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from alignment.data.assign import Filters, ShardFiles, Tally, assign
from alignment.data.manifest import MANIFEST_FILE, Manifest, ManifestShard, SplitWriter
from alignment.data.measure import LOGPS, Contradictions, LogpCounts, measured_columns, pair_numbers
from alignment.data.mixing import AGREED, NOT_SWEPT, Mix, margins_of, mixed, place_in_draw, smallest
from alignment.data.overlap import ItemRuns, item_texts
from alignment.data.rows import PAIR_ID, read_columns
from alignment.data.sources import SuiteItems
from alignment.data.statistics import LogpNumbers, PairNumbers
from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.logprobs.table import LOGPROBS_FILE, logprobs_folder
from alignment.stages.stage import (
    POLICY_LOGPROBS,
    Context,
    ManifestSummary,
    ReferenceSummary,
    Request,
    Result,
    ShardSummary,
    Stage,
)
from alignment.store import Artifact, CorruptArtifact


class Selection(BaseModel):
    """The pairs that a policy disagrees on most with the checkpoint that `references` are of, a `share` of them.

    `policy` is an artifact of `policy_logprobs`, `references` has one of `reference_logprobs` a shard.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(gt=0, le=1)
    policy: Artifact
    references: dict[str, Artifact]


class TrainRows(BaseModel):
    """At most so many training rows, those that come first in the draw of a seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    most: int = Field(ge=1)
    seed: int = 0


class ManifestRequest(Request):
    """`references` has one entry per shard, or none at all for a reference-free method; `mix` says how many rows of
    which shards are kept. `reads_numbers`: training reads rows' scores, weights or margins, so they count in the
    digest.

    The fields after them leave rows out by name (`Filters`); `decontaminate` maps a suite's name to its items. `select`
    and `train_rows` take a part of the training rows that are left.
    """

    absent_by_default: ClassVar[frozenset[str]] = frozenset(
        {
            "mix",
            "reads_numbers",
            "max_length_gap",
            "min_reference_logp",
            "near_duplicates",
            "decontaminate",
            "select",
            "train_rows",
        }
    )

    shards: dict[str, Artifact]
    references: dict[str, Artifact] = Field(default_factory=dict)
    left_out: dict[str, str] = Field(default_factory=dict)
    held_out_fraction: float = Field(ge=0, lt=1)
    mix: tuple[Mix, ...] = ()
    reads_numbers: bool = False
    max_length_gap: int | None = None
    min_reference_logp: float | None = None
    near_duplicates: float | None = None
    decontaminate: dict[str, SuiteItems] | None = None
    select: Selection | None = None
    train_rows: TrainRows | None = None


def run(request: ManifestRequest, context: Context) -> Result:
    """Writes manifest.json and split.parquet.

    Raises `BadInput` when there is no shard, shards or references do not go together, or no row is left.
    """
    kind, shards = pin_shards(request, context)
    tally, files = Tally(), _files(shards, context)
    scratch = context.work / "pair_ids"
    shutil.rmtree(scratch, ignore_errors=True)
    contradictions = Contradictions(scratch, sum(shard.rows for shard in shards))
    filters = Filters(
        request.max_length_gap,
        request.min_reference_logp,
        request.near_duplicates,
        ItemRuns({suite: item_texts(items, suite) for suite, items in request.decontaminate.items()})
        if request.decontaminate
        else None,
    )
    with SplitWriter(context.out) as split:
        assigned = partial(assign, files, request.held_out_fraction, context.work, filters, pair_ids=True)
        digests = [shard.shard.digest for shard in shards]
        drawn = partial(mixed, lambda last: assigned(), digests, request.mix)
        for places in part_of(request, drawn, shards, context):
            contradictions.add(places[PAIR_ID].filter(pc.is_null(places["reason"])).to_numpy())
            split.write(places.drop_columns(PAIR_ID))
            tally.add(places)
    counts = tally.counts
    if counts["rows"] != sum(shard.rows for shard in shards):
        raise CorruptArtifact(f"{counts['rows']} rows split, {sum(shard.rows for shard in shards)} in the shards")
    if not counts["train"]:
        why = ", ".join(f"{reason}: {count}" for reason, count in tally.dropped.items())
        held = f"held out: {counts['held_out']}" if counts["held_out"] else ""
        raise BadInput(f"no rows left after the token policy ({', '.join(filter(None, (why, held)))})")
    manifest = Manifest(
        kind=kind,
        shards=shards,
        left_out=dict(sorted(request.left_out.items())),
        held_out_fraction=request.held_out_fraction,
        counts=counts,
        dropped=tally.dropped,
    )
    (context.out / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    summary = _summary(
        manifest, _pair_numbers(shards, files, context), contradictions.count(), _logps(shards, files, context)
    )
    return Result(digest=manifest_digest(manifest, request), summary=summary)


def manifest_digest(manifest: Manifest, request: ManifestRequest) -> str:
    """What training depends on: rows, references, the split and what leaves rows out of it; not what the shards are
    called or where they lie."""
    entries = sorted(
        (
            shard.row_digest,
            shard.rows,
            shard.reference.digest if shard.reference else "",
            shard.fingerprint or "",
        )
        for shard in manifest.shards
    )
    identity = request.identity()
    filters = {name: identity[name] for name in request.absent_by_default if name in identity}
    split = {"kind": manifest.kind, "shards": entries, "held_out_fraction": manifest.held_out_fraction}
    return json_digest(split | ({"filters": filters} if filters else {}))


def _pair_numbers(shards: list[ManifestShard], files: list[ShardFiles], context: Context) -> PairNumbers | None:
    """From the shards' own summaries; those of an earlier version are measured now."""
    parts = []
    for shard, place in zip(shards, files, strict=True):
        known = ShardSummary.of(context.store.commit_of(shard.shard)).pairs
        parts.append(known or pair_numbers(measured_columns(place.folder)))
    pairs = [part for part in parts if part is not None]
    return PairNumbers.together(pairs) if pairs else None


def _logps(shards: list[ManifestShard], files: list[ShardFiles], context: Context) -> LogpNumbers | None:
    """From the references' own summaries; those of an earlier version are measured now."""
    parts: dict[str, LogpNumbers] = {}
    for shard, place in zip(shards, files, strict=True):
        if shard.reference is None or place.reference is None:
            continue
        known = ReferenceSummary.of(context.store.commit_of(shard.reference)).logps
        if known is None or shard.reference.kind == POLICY_LOGPROBS:  # whose numbers are of all shards
            counts = LogpCounts()
            counts.add(read_columns(place.reference / LOGPROBS_FILE, *LOGPS))
            known = counts.numbers()
        if known is not None:
            parts[shard.name] = known
    return LogpNumbers.together(parts) if parts else None


def _summary(
    manifest: Manifest, pairs: PairNumbers | None, contradictory: int, logps: LogpNumbers | None
) -> ManifestSummary:
    counts: dict[str, Any] = dict(manifest.counts)
    return ManifestSummary(
        **counts,
        reasons=manifest.dropped,
        kind=manifest.kind,
        shards=len(manifest.shards),
        left_out=manifest.left_out,
        fingerprint=manifest.shards[0].fingerprint,
        pairs=pairs,
        contradictory=contradictory,
        reference_logps=logps,
    )


# Pinning ----------------------------------------------------------------------------------------


def pin_shards(request: ManifestRequest, context: Context) -> tuple[Literal["paired", "unpaired"], list[ManifestShard]]:
    """The shards' kind, and each with its reference, ordered by content; raises unless they go together."""
    if not request.shards:
        why = "; ".join(f"{name}: {reason}" for name, reason in sorted(request.left_out.items()))
        raise BadInput(f"no shard to train on{f' ({why})' if why else ''}")
    if request.references and request.references.keys() != request.shards.keys():
        odd = sorted(request.references.keys() ^ request.shards.keys())
        raise BadInput(f"shards and references must be given for the same names; these are not: {', '.join(odd)}")
    pinned: list[ManifestShard] = []
    kinds: dict[str, str] = {}
    for name, shard in request.shards.items():
        summary = ShardSummary.of(context.store.commit_of(shard))
        kinds[name] = summary.kind
        reference = request.references.get(name)
        scored = None if reference is None else ReferenceSummary.of(context.store.commit_of(reference))
        pinned.append(
            ManifestShard(
                name=name,
                rows=summary.rows,
                # without scores, weights and margins where training does not see them
                row_digest=shard.digest if request.reads_numbers else summary.digest or shard.digest,
                shard=shard,
                reference=reference,
                fingerprint=None if scored is None else scored.fingerprint,
            )
        )
    _require_one(kinds, "shards must all be paired or all unpaired")
    _require_one({shard.name: shard.fingerprint for shard in pinned}, "shards were scored by different references")
    pinned.sort(key=lambda entry: (entry.row_digest, entry.reference.digest if entry.reference else "", entry.name))
    return ("paired" if "paired" in kinds.values() else "unpaired"), pinned


def _files(shards: list[ManifestShard], context: Context) -> list[ShardFiles]:
    return [
        ShardFiles(
            shard.name,
            shard.rows,
            context.fetch(shard.shard),
            None if shard.reference is None else scored_folder(context, shard.reference, shard),
        )
        for shard in shards
    ]


def scored_folder(context: Context, logprobs: Artifact, shard: ManifestShard) -> Path:
    """The folder with a shard's log-probs in an artifact that has them."""
    return logprobs_folder(context.fetch(logprobs), shard.shard.digest)


# A part of the training rows ---------------------------------------------------------------------------


def part_of(
    request: ManifestRequest, drawn: Callable[[], Iterator[pa.Table]], shards: list[ManifestShard], context: Context
) -> Iterator[pa.Table]:
    """The places of each shard's rows, training rows beyond the part that the request takes dropped by name; `drawn`
    gives the places, and is called twice where there is such a part."""
    if (select := request.select) is not None:
        reason, taken = AGREED, selected(select, drawn(), shards, context)
    elif (part := request.train_rows) is not None:
        row_ids = [row_id for places in drawn() for row_id in _training(places).to_pylist()]
        first = sorted(row_ids, key=lambda row_id: (place_in_draw(part.seed, row_id), row_id))[: part.most]
        reason, taken = NOT_SWEPT, pa.array(first, pa.string())
    else:
        yield from drawn()
        return
    for places in drawn():
        beyond = pc.and_(pc.equal(places["split"], "train"), pc.invert(pc.is_in(places["row_id"], value_set=taken)))
        cells = {
            "split": pc.if_else(beyond, "dropped", places["split"]),
            "reason": pc.if_else(beyond, reason, places["reason"]),
        }
        yield pa.table({name: cells.get(name, places[name]) for name in places.column_names})


def selected(select: Selection, drawn: Iterator[pa.Table], shards: list[ManifestShard], context: Context) -> pa.Array:
    """Ids of the training pairs that the policy disagrees on most."""
    row_ids, margins = list[pa.Array](), []
    for shard, places in zip(shards, drawn, strict=True):
        train = _training(places)
        policy = read_columns(scored_folder(context, select.policy, shard) / LOGPROBS_FILE, "row_id", *LOGPS[:2])
        start = read_columns(context.fetch(select.references[shard.name]) / LOGPROBS_FILE, "row_id", *LOGPS[:2])
        row_ids += train.chunks
        margins.append(margins_of(policy, train) - margins_of(start, train))
    return smallest(pa.chunked_array(row_ids, pa.string()), margins, select.share)


def _training(places: pa.Table) -> pa.ChunkedArray:
    return places["row_id"].filter(pc.equal(places["split"], "train"))


def _require_one(values: dict[str, Any], complaint: str) -> None:
    if len(set(values.values())) > 1:
        raise BadInput(f"{complaint} ({', '.join(f'{name}: {value}' for name, value in sorted(values.items()))})")


STAGE = Stage(name="preference_manifest", code_version=1, request=ManifestRequest, run=run)
