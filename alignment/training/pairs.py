"""The rows a policy is trained on: a manifest's pairs with their token ids and cached reference log-probs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from alignment.artifacts import CorruptArtifact
from alignment.errors import BadInput
from alignment.logprobs.keys import sequence_key
from alignment.preferences.manifest import Manifest, ManifestShard
from alignment.preferences.row import ROWS_FILE, PreferenceRow, content_id, iter_rows
from alignment.stages import Context
from alignment.tokens import Dropped, Tokenization, TokenSequence

LOGPROBS_FILE = "logprobs.parquet"


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
    record: list[dict[str, Any]] = field(default_factory=list)
    """(row_id, split, reason) of each, in the manifest's order."""

    def dropped(self) -> dict[str, int]:
        """Reason → rows."""
        return dict(sorted(Counter(row["reason"] for row in self.record if row["split"] == "dropped").items()))


def policy_rows(manifest: Manifest, context: Context, split: Any, tokens: Tokenization, fingerprint: str) -> PolicyRows:
    """Reads, tokenises and joins. `split` is what `read_split` gives; `fingerprint` the starting checkpoint's.

    Raises `BadInput` when the references are another model's or no row is left to train on, and
    `CorruptArtifact` when a row's ids are not those its reference was scored on or a row is unaccounted for.
    """
    if manifest.kind != "paired":
        raise BadInput("this method needs pairs, and the preference data is unpaired")
    places = {(row.shard, row.row_id): row for row in split}
    rows = PolicyRows(fingerprint)
    for shard in manifest.shards:
        _require_reference(shard, fingerprint)
        scored = _reference(shard, context)
        for row in iter_rows(context.fetch(shard.shard) / ROWS_FILE):
            place = places.pop((shard.name, row.row_id), None)
            if place is None:
                raise CorruptArtifact(f"row {row.row_id} of shard {shard.name} is not in the manifest's split")
            rows.record.append({"row_id": row.row_id, "split": place.split, "reason": place.reason})
            if place.split != "dropped":
                kept = rows.train if place.split == "train" else rows.held_out
                kept.append(_joined(row, scored.get(row.row_id), tokens, fingerprint))
    if places or len(rows.record) != manifest.counts["rows"]:
        raise CorruptArtifact(f"{len(rows.record)} rows in the shards, {manifest.counts['rows']} in the manifest")
    if len(rows.train) + len(rows.held_out) + sum(rows.dropped().values()) != manifest.counts["rows"]:
        raise CorruptArtifact("rows trained + held out + dropped are not the manifest's rows")
    if not rows.train:
        raise BadInput("no rows left after the token policy")
    return rows


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


def _joined(row: PreferenceRow, scored: dict[str, Any] | None, tokens: Tokenization, fingerprint: str) -> PolicyPair:
    if scored is None:
        raise CorruptArtifact(f"row {row.row_id} has no reference log-probs")
    pair = tokens.pair(row)
    if isinstance(pair, Dropped):
        raise CorruptArtifact(f"row {row.row_id} was scored, and is dropped now: {pair.reason}")
    for side, sequence in zip(("chosen", "rejected"), pair, strict=True):
        if sequence_key(fingerprint, sequence).hex() != scored[f"{side}_key"]:
            raise CorruptArtifact(f"row {row.row_id}: the {side} side's token ids are not those that were scored")
    logps = float(scored["chosen_logp"]), float(scored["rejected_logp"])
    return PolicyPair(row.row_id, *pair, *logps, content_id({"prompt": row.prompt}))
