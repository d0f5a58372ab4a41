"""The rows a policy is trained on: those of a manifest, with their token ids and cached reference log-probs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.manifest import SPLIT_SCHEMA, Manifest, ManifestShard, open_split
from alignment.data.rows import ROWS_FILE, PreferenceRow, content_id, iter_rows
from alignment.data.tokens import Dropped, Tokenization, require_few_rewritten
from alignment.errors import BadInput
from alignment.logprobs.keys import keys_of
from alignment.logprobs.reference import mismatched
from alignment.logprobs.table import LOGPROBS_FILE, logprobs_folder
from alignment.logprobs.token_ids import ROWS_AT_ONCE, Pair, TokenIds
from alignment.methods import Method
from alignment.stages.stage import Context
from alignment.store import CorruptArtifact
from alignment.training.pairs import PolicyCompletion, PolicyPair, PolicyRow, schema_of, sequences_of, with_reference
from alignment.training.row_files import BATCH_ROWS, SPLITS, PairsFile

RECORD_SCHEMA = pa.schema([field for field in SPLIT_SCHEMA if field.name != "shard"])
REMEDIES = {
    "weight": "preferences.weight_column names its column",
    "target_margin": "preferences.margin_column names its column; with target_margin: scores both sides need a score,"
    " and preferences.min_score_gap: 0 quarantines pairs without",
}


@dataclass(frozen=True)
class Joining:
    """Joins rows with token ids and reference log-probs, for a method; ids that are not known are made."""

    context: Context
    method: Method
    tokens: Tokenization
    token_ids: TokenIds
    fingerprint: str
    """The starting checkpoint's, as that of the reference."""

    def write(self, manifest: Manifest, folder: Path, into: Path, record: Path) -> dict[str, int]:
        """Writes the rows of the manifest in `folder`, and returns {reason: dropped rows}.

        `into` gets a file of rows a split, `record` a Parquet of (row_id, split, reason) of every row in the manifest's
        order. Rows that do not fit the token policy were dropped with the references; where the method has none, they
        are dropped here. Raises `BadInput` when the references are another model's, the template rewrites too many
        prompts or no row is left to train on, and `CorruptArtifact` when a row's ids are not those its reference was
        scored on or a row is unaccounted for.
        """
        if manifest.kind != self.method.data:
            raise BadInput(
                f"loss: {self.method.name} needs {self.method.data} preferences, and the data is {manifest.kind}"
            )
        rows, dropped = 0, Counter[str]()
        files = {split: PairsFile(into / f"{split}.arrow", schema_of(self.method)) for split in SPLITS}
        with open_split(folder, manifest) as split, pq.ParquetWriter(record, RECORD_SCHEMA, compression="zstd") as out:
            for index, shard in enumerate(manifest.shards):
                path = self.context.fetch(shard.shard) / ROWS_FILE
                places = _in_order_of(path, split.of_shard(index, RECORD_SCHEMA.names), shard)
                unfit = self._add(shard, path, places["split"], files)
                places = _with_dropped(places, unfit)
                require_few_rewritten(
                    Counter(unfit.values()),
                    places["reason"].null_count,
                    self.tokens.policy,
                    f"the checkpoint that training starts from, with shard {shard.name},",
                )
                out.write_table(places)
                rows += len(places)
                dropped.update(places["reason"].drop_null().to_pylist())
        for file in files.values():
            file.close()
        if rows != manifest.counts["rows"]:
            raise CorruptArtifact(f"{rows} rows in the shards, {manifest.counts['rows']} in the manifest")
        if files["train"].rows + files["held_out"].rows + dropped.total() != rows:
            raise CorruptArtifact("rows trained + held out + dropped are not the manifest's rows")
        if not files["train"].rows:
            why = ", ".join(f"{reason}: {count}" for reason, count in sorted(dropped.items()))
            raise BadInput(f"no rows left after the token policy ({why})")
        return dict(sorted(dropped.items()))

    def _add(
        self, shard: ManifestShard, path: Path, split: pa.ChunkedArray, files: Mapping[str, PairsFile]
    ) -> dict[str, str]:
        """Adds a shard's rows to the file of their split; returns {row id: reason} of those that do not fit."""
        if self.method.needs_reference:
            _require_reference(shard, self.fingerprint)
        scored = _Scored(shard, self.context) if self.method.needs_reference else None
        names = (name.as_py() for chunk in split.chunks for name in chunk)
        kept = ((row, name) for row, name in zip(iter_rows(path), names, strict=True) if name != "dropped")
        unfit: dict[str, str] = {}
        while batch := list(islice(kept, ROWS_AT_ONCE)):
            rows = [row for row, _ in batch]
            joined = self._without_reference(rows) if scored is None else self._referenced(rows, scored, path)
            for (row, name), made in zip(batch, joined, strict=True):
                if isinstance(made, Dropped):
                    unfit[row.row_id] = made.reason
                else:
                    files[name].add(_with_numbers(made, row, self.method, shard))
        return unfit

    def _without_reference(self, rows: Sequence[PreferenceRow]) -> list[PolicyRow | Dropped]:
        """The rows, or why they do not fit; as no scorer has looked at their ids, the embeddings are asked here."""
        pairs, made = self.token_ids.pairs(rows, self.tokens), list[PolicyRow | Dropped]()
        for row in rows:
            pair = pairs[row.row_id]
            if isinstance(pair, Dropped):
                made.append(pair)
                continue
            for side in pair:
                self.tokens.require_embeddings(side)
            made.append(PolicyPair(row.row_id, *pair, math.nan, math.nan, _prompt_id(row)))
        return made

    def _referenced(self, rows: Sequence[PreferenceRow], scored: _Scored, path: Path) -> list[PolicyRow | Dropped]:
        """The rows with their reference log-probs; `path` is their shard's file, where partners stand."""
        found = {row.row_id: scored.of(row.row_id) for row in rows}
        ids = self.token_ids.pairs(rows, self.tokens)
        if self.method.coupled:
            partners = {cells["partner_id"] for cells in found.values() if cells and cells["partner_id"]}
            ids |= self._ids_of(partners - ids.keys(), path)
        return [self._joined(row, found[row.row_id], ids) for row in rows]

    def _ids_of(self, row_ids: Set[str], path: Path) -> dict[str, Pair | Dropped]:
        """The ids of rows of a shard, most of which are remembered."""
        found = {row_id: pair for batch in self.token_ids.ids(row_ids) for row_id, pair in batch}
        unread = (row for row in iter_rows(path) if row.row_id in row_ids and row.row_id not in found)
        while len(found) < len(row_ids) and (batch := list(islice(unread, ROWS_AT_ONCE))):
            found |= self.token_ids.pairs(batch, self.tokens)
        return found

    def _joined(
        self, row: PreferenceRow, scored: dict[str, Any] | None, ids: Mapping[str, Pair | Dropped]
    ) -> PolicyRow:
        """A row with its reference log-probs; `ids` are the token ids of rows, partners among them."""
        pair = ids[row.row_id]
        if scored is None:
            raise CorruptArtifact(f"row {row.row_id} has no reference log-probs")
        if isinstance(pair, Dropped):
            raise CorruptArtifact(f"row {row.row_id} was scored, and is dropped now: {pair.reason}")
        made: PolicyRow
        if self.method.coupled:
            other = None if scored["partner_id"] is None else ids.get(scored["partner_id"])
            if isinstance(other, Dropped) or (scored["partner_id"] is not None and other is None):
                raise CorruptArtifact(f"row {row.row_id}: its partner {scored['partner_id']} is not a row of the shard")
            partner = None if other is None else mismatched(pair[0], other[0], self.tokens.policy.max_length)
            made = PolicyCompletion(row.row_id, pair[0], partner, bool(row.label), 0.0, 0.0, _prompt_id(row))
        else:
            made = PolicyPair(row.row_id, *pair, 0.0, 0.0, _prompt_id(row))
        logps = {"partner": math.nan} if self.method.coupled else {}
        for name, key in keys_of(self.fingerprint, sequences_of(self.method, made)).items():
            if key.hex() != scored.get(f"{name}_key"):
                raise CorruptArtifact(f"row {row.row_id}: the {name} side's token ids are not those that were scored")
            logps[name] = float(scored[f"{name}_logp"])
            if not math.isfinite(logps[name]):
                raise CorruptArtifact(f"row {row.row_id}: its reference log-probs are not finite: {name} {logps[name]}")
        return with_reference(made, logps)


class _Scored:
    """A shard's reference log-probs, looked up in the order of its rows."""

    def __init__(self, shard: ManifestShard, context: Context) -> None:
        assert shard.reference is not None
        folder = logprobs_folder(context.fetch(shard.reference), shard.shard.digest)
        self._table = pq.read_table(folder / LOGPROBS_FILE)
        self._batches = self._table.to_batches(max_chunksize=BATCH_ROWS)
        self._held: dict[str, dict[str, Any]] = {}

    def of(self, row_id: str) -> dict[str, Any] | None:
        """A row's cells, None where it was not scored; rows that come in the table's order are held batch by batch."""
        while row_id not in self._held and self._batches:
            cells = self._batches.pop(0).to_pylist()
            self._held = dict(list(self._held.items())[-BATCH_ROWS:]) | {each["row_id"]: each for each in cells}
        if row_id not in self._held and len(self._held) < len(self._table):
            # rows in another order, where a twin of the shard stands for it: all are held
            self._held = {each["row_id"]: each for each in self._table.to_pylist()}
        return self._held.get(row_id)


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


def _with_dropped(places: pa.Table, unfit: Mapping[str, str]) -> pa.Table:
    """A shard's places, with these of its rows dropped; `unfit` is {row id: reason}."""
    if not unfit:
        return places
    cells = places.to_pylist()
    for row in cells:
        if (reason := unfit.get(row["row_id"])) is not None:
            row |= {"split": "dropped", "reason": reason}
    return pa.Table.from_pylist(cells, schema=places.schema)


def _with_numbers(pair: PolicyRow, row: PreferenceRow, method: Method, shard: ManifestShard) -> PolicyRow:
    """The pair with the numbers of its row that the method reads; another row as it is."""
    if not isinstance(pair, PolicyPair):
        return pair
    found: dict[str, Any] = {name: read(row) for name, read in method.numbers.items()}
    if lacking := [name for name, number in found.items() if number is None]:
        raise BadInput(
            f"row {row.row_id} of shard {shard.name} ({row.source} row {row.source_row}) has no {lacking[0]}:"
            f" {REMEDIES[lacking[0]]}"
        )
    return replace(pair, **found)


def _prompt_id(row: PreferenceRow) -> str:
    return content_id({"prompt": row.prompt})


def _require_reference(shard: ManifestShard, fingerprint: str) -> None:
    if shard.reference is None:
        raise BadInput(f"shard {shard.name} has no reference log-probs, and this method needs them")
    if shard.fingerprint != fingerprint:
        raise BadInput(
            f"the reference log-probs of shard {shard.name} are not those of the checkpoint training starts from,"
            " at this precision: score the shard again"
        )
