"""`preference_manifest`: the pinned set of rows that a policy is trained on, and which of them are held out.

Every row of every shard stands in split.parquet exactly once: train, held_out, or dropped with a reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from alignment.artifacts import Artifact, CorruptArtifact
from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.preferences.parquet import write_records
from alignment.preferences.quarantine import DUPLICATE, reason_counts
from alignment.preferences.row import ROWS_FILE
from alignment.preferences.split import is_held_out
from alignment.stages import Context, Request, Result, Stage

MANIFEST_FILE = "manifest.json"
SPLIT_FILE = "split.parquet"
SPLIT_SCHEMA = pa.schema(
    [("row_id", pa.string()), ("shard", pa.string()), ("split", pa.string()), ("reason", pa.string())]
)


class ManifestShard(BaseModel):
    """One shard as it was pinned. `reference` and `fingerprint` are None for reference-free methods."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    rows: int
    row_digest: str
    shard: Artifact
    reference: Artifact | None
    fingerprint: str | None


class Manifest(BaseModel):
    """What a policy is trained on: `counts` {rows, train, held_out, dropped}, `dropped` {reason: rows}."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    kind: Literal["paired", "unpaired"]
    shards: list[ManifestShard]
    """Ordered by content, never by name."""
    left_out: dict[str, str]
    """Shard → why no row of it takes part."""
    held_out_fraction: float
    counts: dict[str, int]
    dropped: dict[str, int]


class ManifestRequest(Request):
    """`references` has one entry per shard, or none at all for a reference-free method."""

    shards: dict[str, Artifact]
    references: dict[str, Artifact] = Field(default_factory=dict)
    left_out: dict[str, str] = Field(default_factory=dict)
    held_out_fraction: float = Field(ge=0, lt=1)


@dataclass(frozen=True)
class Assigned:
    """Where one row went."""

    row_id: str
    shard: str
    split: Literal["train", "held_out", "dropped"]
    reason: str | None = None


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a fetched artifact folder."""
    return Manifest.model_validate_json((folder / MANIFEST_FILE).read_text(encoding="utf-8"))


def read_split(folder: Path) -> list[Assigned]:
    """Every row of the manifest, shard by shard in the manifest's order and in source order within one."""
    return [Assigned(**cells) for cells in pq.read_table(folder / SPLIT_FILE).to_pylist()]


def run(request: ManifestRequest, context: Context) -> Result:
    """Writes manifest.json and split.parquet.

    Raises `BadInput` when there is no shard, shards or references do not go together, or no row is left.
    """
    kind, shards = pin_shards(request, context)
    assigned = list(assign(shards, request.held_out_fraction, context))
    splits = [row.split for row in assigned]
    counts = {"rows": len(splits), **{name: splits.count(name) for name in ("train", "held_out", "dropped")}}
    dropped = reason_counts(row.reason for row in assigned if row.reason is not None)
    if counts["rows"] != sum(shard.rows for shard in shards):
        raise CorruptArtifact(f"{counts['rows']} rows split, {sum(shard.rows for shard in shards)} in the shards")
    if not counts["train"]:
        why = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
        held = f"held out: {counts['held_out']}" if counts["held_out"] else ""
        raise BadInput(f"no rows left after the token policy ({', '.join(filter(None, (why, held)))})")
    manifest = Manifest(
        kind=kind,
        shards=shards,
        left_out=dict(sorted(request.left_out.items())),
        held_out_fraction=request.held_out_fraction,
        counts=counts,
        dropped=dropped,
    )
    (context.out / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    write_records(context.out / SPLIT_FILE, SPLIT_SCHEMA, (vars(row) for row in assigned))
    return Result(digest=manifest_digest(manifest), summary=_summary(manifest))


def manifest_digest(manifest: Manifest) -> str:
    """What training depends on: rows, references and the split; not what the shards are called or where they lie."""
    entries = sorted(
        (
            shard.row_digest,
            shard.rows,
            shard.reference.digest if shard.reference else "",
            shard.fingerprint or "",
        )
        for shard in manifest.shards
    )
    return json_digest({"kind": manifest.kind, "shards": entries, "held_out_fraction": manifest.held_out_fraction})


def _summary(manifest: Manifest) -> dict[str, Any]:
    fingerprints = {shard.fingerprint for shard in manifest.shards}
    return {
        **manifest.counts,
        "reasons": manifest.dropped,
        "kind": manifest.kind,
        "shards": len(manifest.shards),
        "left_out": manifest.left_out,
        "fingerprint": next(iter(fingerprints)),
    }


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
        summary = context.store.commit_of(shard).summary
        kinds[name] = summary["kind"]
        reference = request.references.get(name)
        fingerprint = None if reference is None else context.store.commit_of(reference).summary["fingerprint"]
        pinned.append(
            ManifestShard(
                name=name,
                rows=summary["rows"],
                row_digest=shard.digest,
                shard=shard,
                reference=reference,
                fingerprint=fingerprint,
            )
        )
    _require_one(kinds, "shards must all be paired or all unpaired")
    _require_one({shard.name: shard.fingerprint for shard in pinned}, "shards were scored by different references")
    pinned.sort(key=lambda entry: (entry.row_digest, entry.reference.digest if entry.reference else "", entry.name))
    return ("paired" if "paired" in kinds.values() else "unpaired"), pinned


def _require_one(values: dict[str, Any], complaint: str) -> None:
    if len(set(values.values())) > 1:
        raise BadInput(f"{complaint} ({', '.join(f'{name}: {value}' for name, value in sorted(values.items()))})")


# Splitting --------------------------------------------------------------------------------------


def assign(shards: list[ManifestShard], held_out_fraction: float, context: Context) -> Iterator[Assigned]:
    """Every row's place. A row that several shards hold counts in the first of them only."""
    first_in: dict[str, str] = {}
    for shard in shards:
        folder = context.fetch(shard.shard)
        rows = pq.read_table(folder / ROWS_FILE, columns=["row_id", "form", "prompt"]).to_pylist()
        dropped = _dropped(shard, {row["row_id"] for row in rows}, context)
        for row in rows:
            row_id = row["row_id"]
            if row_id in first_in:
                yield Assigned(row_id, shard.name, "dropped", f"{DUPLICATE} of shard {first_in[row_id]}")
                continue
            first_in[row_id] = shard.name
            if row_id in dropped:
                yield Assigned(row_id, shard.name, "dropped", dropped[row_id])
            elif is_held_out(row["prompt"], row["form"], held_out_fraction):
                yield Assigned(row_id, shard.name, "held_out")
            else:
                yield Assigned(row_id, shard.name, "train")


def _dropped(shard: ManifestShard, row_ids: set[str], context: Context) -> dict[str, str]:
    """Row id → reason of what the reference dropped; raises unless it accounts for all of the shard's rows."""
    if shard.reference is None:
        return {}
    folder = context.fetch(shard.reference)
    dropped = pq.read_table(folder / "dropped.parquet", columns=["row_id", "reason"]).to_pylist()
    scored = pq.read_table(folder / "logprobs.parquet", columns=["row_id"]).column("row_id").to_pylist()
    reasons = {entry["row_id"]: entry["reason"] for entry in dropped}
    if missing := row_ids - reasons.keys() - set(scored):
        raise BadInput(
            f"the reference log-probs of shard {shard.name} lack {len(missing)} of its {len(row_ids)} rows"
            f" (first: {min(missing)}); score the shard again"
        )
    return reasons


STAGE = Stage(name="preference_manifest", code_version=1, request=ManifestRequest, run=run)
