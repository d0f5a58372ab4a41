"""The rows a policy is trained on: a manifest's pairs with their token ids and cached reference log-probs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.manifest import SPLIT_SCHEMA, Manifest, ManifestShard, open_split
from alignment.data.rows import ROWS_FILE, PreferenceRow, content_id, iter_rows
from alignment.data.tokens import Dropped, Tokenization, TokenSequence
from alignment.errors import BadInput
from alignment.logprobs.keys import sequence_key
from alignment.logprobs.token_ids import ROWS_AT_ONCE, Pair, TokenIds
from alignment.methods import Method
from alignment.stages import Context
from alignment.store import CorruptArtifact

LOGPROBS_FILE = "logprobs.parquet"
RECORD_SCHEMA = pa.schema([field for field in SPLIT_SCHEMA if field.name != "shard"])


@dataclass(frozen=True)
class PolicyPair:
    """One pair as the trainer takes it; log-probs in nats, summed over each completion."""

    row_id: str
    chosen: TokenSequence
    rejected: TokenSequence
    chosen_logp: float
    rejected_logp: float
    prompt_id: str
    """The same for pairs of one prompt."""

    @property
    def longest(self) -> int:
        return max(len(self.chosen), len(self.rejected))

    def features(self) -> dict[str, Any]:
        """The columns `PairCollator` reads."""
        return {
            "chosen_prompt_ids": list(self.chosen.prompt_ids),
            "chosen_ids": list(self.chosen.completion_ids),
            "rejected_prompt_ids": list(self.rejected.prompt_ids),
            "rejected_ids": list(self.rejected.completion_ids),
            "ref_chosen_logps": self.chosen_logp,
            "ref_rejected_logps": self.rejected_logp,
        }


@dataclass
class PolicyRows:
    """Every row of a manifest: trained on, held out, or dropped for a reason; `fingerprint` is their reference's."""

    fingerprint: str
    train: list[PolicyPair] = field(default_factory=list)
    held_out: list[PolicyPair] = field(default_factory=list)
    record: pa.Table = field(default_factory=RECORD_SCHEMA.empty_table)
    """(row_id, split, reason) of each, in the manifest's order."""

    def dropped(self) -> dict[str, int]:
        """Reason → rows."""
        reasons = self.record["reason"].drop_null().value_counts().to_pylist()
        return dict(sorted((reason["values"], reason["counts"]) for reason in reasons))


def policy_rows(
    manifest: Manifest,
    context: Context,
    folder: Path,
    tokens: Tokenization,
    token_ids: TokenIds,
    fingerprint: str,
    method: Method,
) -> PolicyRows:
    """Reads and joins; rows whose `token_ids` are not known are tokenised. `folder` is the manifest's, `fingerprint`
    the starting checkpoint's.

    Raises `BadInput` when the references are another model's or no row is left to train on, and
    `CorruptArtifact` when a row's ids are not those its reference was scored on or a row is unaccounted for.
    """
    if manifest.kind != method.data:
        raise BadInput(f"loss: {method.name} needs {method.data} preferences, and the data is {manifest.kind}")
    rows = PolicyRows(fingerprint)
    record: list[pa.Table] = []
    with open_split(folder, manifest) as split:
        for index, shard in enumerate(manifest.shards):
            _require_reference(shard, fingerprint)
            scored = _reference(shard, context)
            path = context.fetch(shard.shard) / ROWS_FILE
            record.append(_in_order_of(path, split.of_shard(index, RECORD_SCHEMA.names), shard))
            placed = zip(iter_rows(path), record[-1]["split"].to_pylist(), strict=True)
            kept_rows = ((row, name) for row, name in placed if name != "dropped")
            while batch := list(islice(kept_rows, ROWS_AT_ONCE)):
                pairs = token_ids.pairs([row for row, _ in batch], tokens)
                for row, name in batch:
                    kept = rows.train if name == "train" else rows.held_out
                    kept.append(_joined(row, scored.get(row.row_id), pairs[row.row_id], fingerprint))
    rows.record = pa.concat_tables([rows.record, *record])
    if len(rows.record) != manifest.counts["rows"]:
        raise CorruptArtifact(f"{len(rows.record)} rows in the shards, {manifest.counts['rows']} in the manifest")
    if len(rows.train) + len(rows.held_out) + sum(rows.dropped().values()) != manifest.counts["rows"]:
        raise CorruptArtifact("rows trained + held out + dropped are not the manifest's rows")
    if not rows.train:
        raise BadInput("no rows left after the token policy")
    return rows


def _in_order_of(path: Path, places: pa.Table, shard: ManifestShard) -> pa.Table:
    """A shard's places in the order of its rows, which is another where a twin of the artifact stands for it."""
    row_ids = pq.read_table(path, columns=["row_id"])["row_id"]
    if row_ids.equals(places["row_id"]):
        return places
    found = pc.index_in(row_ids, value_set=places["row_id"])
    if found.null_count:
        strange = row_ids.filter(pc.is_null(found))[0]
        raise CorruptArtifact(f"row {strange} of shard {shard.name} is not in the manifest's split")
    if not len(row_ids) == len(places) == pc.count_distinct(found).as_py():
        raise CorruptArtifact(f"shard {shard.name} has not each of the rows that the manifest's split has of it once")
    return places.take(found)


def _require_reference(shard: ManifestShard, fingerprint: str) -> None:
    if shard.reference is None:
        raise BadInput(f"shard {shard.name} has no reference log-probs, and this method needs them")
    if shard.fingerprint != fingerprint:
        raise BadInput(
            f"the reference log-probs of shard {shard.name} are not those of the checkpoint training starts from,"
            " at this precision: score the shard again"
        )


def _reference(shard: ManifestShard, context: Context) -> dict[str, dict[str, Any]]:
    assert shard.reference is not None
    table = pq.read_table(context.fetch(shard.reference) / LOGPROBS_FILE)
    return {cells["row_id"]: cells for cells in table.to_pylist()}


def _joined(row: PreferenceRow, scored: dict[str, Any] | None, pair: Pair | Dropped, fingerprint: str) -> PolicyPair:
    if scored is None:
        raise CorruptArtifact(f"row {row.row_id} has no reference log-probs")
    if isinstance(pair, Dropped):
        raise CorruptArtifact(f"row {row.row_id} was scored, and is dropped now: {pair.reason}")
    for side, sequence in zip(("chosen", "rejected"), pair, strict=True):
        if sequence_key(fingerprint, sequence).hex() != scored[f"{side}_key"]:
            raise CorruptArtifact(f"row {row.row_id}: the {side} side's token ids are not those that were scored")
    logps = float(scored["chosen_logp"]), float(scored["rejected_logp"])
    if not all(map(math.isfinite, logps)):
        raise CorruptArtifact(f"row {row.row_id}: its reference log-probs are not finite: {logps}")
    return PolicyPair(row.row_id, *pair, *logps, content_id({"prompt": row.prompt}))
