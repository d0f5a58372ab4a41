"""The rows a policy is trained on: a manifest's pairs with their token ids and cached reference log-probs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.manifest import SPLIT_SCHEMA, Manifest, ManifestShard, open_split
from alignment.data.rows import ROWS_FILE, PreferenceRow, content_id, iter_rows
from alignment.data.tokens import Dropped, Tokenization, TokenSequence, require_few_rewritten, with_firsts
from alignment.errors import BadInput
from alignment.logprobs.keys import keys_of, whole_of
from alignment.logprobs.reference import mismatched
from alignment.logprobs.table import LOGPROBS_FILE, logprobs_folder
from alignment.logprobs.token_ids import ROWS_AT_ONCE, Pair, TokenIds
from alignment.methods import Method
from alignment.methods.method import column
from alignment.recipe import TokenPolicy
from alignment.stages import Context
from alignment.store import CorruptArtifact

RECORD_SCHEMA = pa.schema([field for field in SPLIT_SCHEMA if field.name != "shard"])
SPLITS = ("train", "held_out")
SFT_FILE = "sft.arrow"
IDS = pa.list_(pa.int32())
PAIRS = pa.schema(
    [
        ("row_id", pa.string()),
        ("prompt_id", pa.string()),
        ("chosen_prompt_ids", IDS),
        ("chosen_ids", IDS),
        ("rejected_prompt_ids", IDS),
        ("rejected_ids", IDS),
        ("ref_chosen_logp", pa.float64()),
        ("ref_rejected_logp", pa.float64()),
        ("longest", pa.int32()),
    ]
)
FIRSTS = [("ref_chosen_first_logp", pa.float64()), ("ref_rejected_first_logp", pa.float64())]
"""What a method that weighs the first tokens of both sides alone reads beside `PAIRS`."""
NUMBERS = [("weight", pa.float64()), ("target_margin", pa.float64())]
"""What a method that reads a pair's own numbers takes of the data (`Method.numbers`)."""
COMPLETIONS = pa.schema(
    [
        ("row_id", pa.string()),
        ("prompt_id", pa.string()),
        ("prompt_ids", IDS),
        ("completion_ids", IDS),
        ("partner_ids", IDS),
        ("label", pa.bool_()),
        ("ref_completion_logp", pa.float64()),
        ("ref_partner_logp", pa.float64()),
        ("longest", pa.int32()),
    ]
)
BATCH_ROWS = 4096
"""Rows of a batch of the file that the trainer reads from, and of what is held in memory while it is written."""


@dataclass(frozen=True)
class PolicyPair:
    """One pair as the trainer takes it; log-probs in nats, summed over each completion, NaN without a reference."""

    row_id: str
    chosen: TokenSequence
    rejected: TokenSequence
    ref_chosen_logp: float
    ref_rejected_logp: float
    prompt_id: str
    """The same for pairs of one prompt."""
    ref_chosen_first_logp: float = math.nan
    """Of as many first tokens as the shorter side has, for methods that ask for them; else NaN."""
    ref_rejected_first_logp: float = math.nan
    weight: float = math.nan
    """Its weight from the data, for methods that ask for it; else NaN, as `target_margin`."""
    target_margin: float = math.nan

    @property
    def sequences(self) -> dict[str, TokenSequence]:
        """Its sequences by name."""
        return {"chosen": self.chosen, "rejected": self.rejected}

    @property
    def longest(self) -> int:
        """Tokens of the longer side."""
        return max(len(self.chosen), len(self.rejected))

    def cells(self) -> dict[str, Any]:
        """A row of `PAIRS`. Each side has its own prompt: where one ends depends on the completion that follows it."""
        return {
            "row_id": self.row_id,
            "prompt_id": self.prompt_id,
            "chosen_prompt_ids": self.chosen.prompt_ids,
            "chosen_ids": self.chosen.stored_ids,
            "rejected_prompt_ids": self.rejected.prompt_ids,
            "rejected_ids": self.rejected.stored_ids,
            "ref_chosen_logp": self.ref_chosen_logp,
            "ref_rejected_logp": self.ref_rejected_logp,
            "longest": self.longest,
            "ref_chosen_first_logp": self.ref_chosen_first_logp,
            "ref_rejected_first_logp": self.ref_rejected_first_logp,
            "weight": self.weight,
            "target_margin": self.target_margin,
        }

    @classmethod
    def of(cls, cells: Mapping[str, Any]) -> PolicyPair:
        """The inverse of `cells`."""
        return cls(
            cells["row_id"],
            TokenSequence.of_stored(tuple(cells["chosen_prompt_ids"]), tuple(cells["chosen_ids"])),
            TokenSequence.of_stored(tuple(cells["rejected_prompt_ids"]), tuple(cells["rejected_ids"])),
            cells["ref_chosen_logp"],
            cells["ref_rejected_logp"],
            cells["prompt_id"],
            *(cells.get(name, math.nan) for name, _ in FIRSTS + NUMBERS),
        )


@dataclass(frozen=True)
class PolicyCompletion:
    """One labelled completion as the trainer takes it; log-probs as a `PolicyPair` has them."""

    row_id: str
    completion: TokenSequence
    partner: TokenSequence | None
    """The same prompt with the partner's completion; None for a row that is alone in its shard."""
    label: bool
    ref_completion_logp: float
    ref_partner_logp: float
    prompt_id: str
    """The same for completions of one prompt."""

    @property
    def sequences(self) -> dict[str, TokenSequence]:
        """Its sequences by name."""
        partner = {} if self.partner is None else {"partner": self.partner}
        return {"completion": self.completion, **partner}

    @property
    def longest(self) -> int:
        """Tokens of the longer sequence."""
        return max(map(len, self.sequences.values()))

    def cells(self) -> dict[str, Any]:
        """A row of `COMPLETIONS`."""
        return {
            "row_id": self.row_id,
            "prompt_id": self.prompt_id,
            "prompt_ids": self.completion.prompt_ids,
            "completion_ids": self.completion.stored_ids,
            "partner_ids": None if self.partner is None else self.partner.stored_ids,
            "label": self.label,
            "ref_completion_logp": self.ref_completion_logp,
            "ref_partner_logp": self.ref_partner_logp,
            "longest": self.longest,
        }

    @classmethod
    def of(cls, cells: Mapping[str, Any]) -> PolicyCompletion:
        """The inverse of `cells`."""
        prompt, partner = tuple(cells["prompt_ids"]), cells["partner_ids"]
        return cls(
            cells["row_id"],
            TokenSequence.of_stored(prompt, tuple(cells["completion_ids"])),
            None if partner is None else TokenSequence.of_stored(prompt, tuple(partner)),
            cells["label"],
            cells["ref_completion_logp"],
            cells["ref_partner_logp"],
            cells["prompt_id"],
        )


PolicyRow = PolicyPair | PolicyCompletion


def schema_of(method: Method) -> pa.Schema:
    """The columns of a method's rows."""
    if method.data == "unpaired":
        return COMPLETIONS
    more = [*(FIRSTS if method.first_tokens else ()), *(each for each in NUMBERS if each[0] in method.numbers)]
    return pa.schema([*PAIRS, *(pa.field(*field) for field in more)])


def sequences_of(method: Method, row: PolicyRow) -> dict[str, TokenSequence]:
    """The sequences of a row whose log-probs the method reads, by name."""
    return with_firsts(row.sequences) if method.first_tokens else row.sequences


def with_reference(row: PolicyRow, logps: Mapping[str, float]) -> PolicyRow:
    """The row with reference log-probs by the name of their sequence."""
    changes: dict[str, Any] = {f"ref_{name}_logp": logp for name, logp in logps.items()}
    return replace(row, **changes)


Score = Callable[..., list[float]]
"""Log-probs in nats of completions given their prompts, by the pass that trains them: `logps` of the scorer without its
model and budget."""


def score_rows(method: Method, rows: Sequence[PolicyRow], score: Score) -> list[dict[str, float]]:
    """The log-probs of each row's `sequences_of`, by name; those of first tokens out of their whole's forward."""
    named = [sequences_of(method, row) for row in rows]
    flat, wholes = list[TokenSequence](), list[int]()
    for sequences in named:
        places = {name: len(flat) + place for place, name in enumerate(sequences)}
        flat += sequences.values()
        wholes += [places[whole_of(name)] for name in sequences]
    logps = iter(score(flat, wholes) if method.first_tokens else score(flat))
    return [{name: next(logps) for name in sequences} for sequences in named]


def policy_logps(method: Method, rows: Sequence[PolicyRow], logps: Sequence[float]) -> tuple[Any, Any]:
    """What the method's loss takes of rows that are measured together, and its constants.

    `logps` (nats) are those of each row's `sequences_of` in turn.
    """
    by_name: dict[str, list[float]] = defaultdict(list)
    ratios: list[float] = []
    remaining = iter(logps)
    for row in rows:
        for name in sequences_of(method, row):
            by_name[name].append(next(remaining))
            if name in method.coupled:
                ratios.append(by_name[name][-1] - getattr(row, f"ref_{name}_logp"))
    policy = {name: column(values) for name, values in by_name.items() if name not in method.coupled}
    return method.logps.of(rows, policy), method.prepare(column(ratios)) if method.coupled else None


def reference_logps(method: Method, rows: Sequence[PolicyRow]) -> Any:
    """What the method's loss takes of rows whose policy is their reference."""
    return policy_logps(
        method, rows, [getattr(row, f"ref_{name}_logp") for row in rows for name in sequences_of(method, row)]
    )[0]


class PolicyPairs(Sequence[Any]):
    """The rows of an Arrow file, mapped into memory: a process holds those it looks at, however many there are."""

    def __init__(self, path: Path) -> None:
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._rows: int = sum(self._file.get_batch(index).num_rows for index in range(self._file.num_record_batches))

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        batch, place = divmod(int(index), BATCH_ROWS)
        cells = self._file.get_batch(batch).slice(place, 1).to_pylist()[0]
        return PolicyCompletion.of(cells) if "label" in cells else PolicyPair.of(cells)

    @property
    def row_ids(self) -> pa.ChunkedArray:
        return self._column("row_id")

    def longest(self) -> PolicyRow:
        """The row with the longest sequence."""
        lengths = self._column("longest").to_numpy()
        row: PolicyRow = self[int(lengths.argmax())]
        return row

    def _column(self, name: str) -> pa.ChunkedArray:
        batches = (self._file.get_batch(index) for index in range(self._file.num_record_batches))
        return pa.chunked_array([batch.column(name) for batch in batches], self._file.schema.field(name).type)


class PairsFile:
    """Writes such a file in batches of `BATCH_ROWS`; it is there once all went well, or not at all."""

    def __init__(self, path: Path, schema: pa.Schema = PAIRS) -> None:
        self.path, self.schema, self.rows = path, schema, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._arriving = path.with_name(f".{path.name}")
        self._file = pa.ipc.new_file(str(self._arriving), schema)
        self._waiting: list[dict[str, Any]] = []

    def add(self, row: PolicyRow) -> None:
        self._waiting.append(row.cells())
        self.rows += 1
        if len(self._waiting) == BATCH_ROWS:
            self._write()

    def close(self) -> None:
        if self._waiting:
            self._write()
        self._file.close()
        self._arriving.replace(self.path)

    def _write(self) -> None:
        self._file.write_batch(pa.RecordBatch.from_pylist(self._waiting, schema=self.schema))
        self._waiting = []


@dataclass(frozen=True)
class PolicyRows:
    """Every row of a manifest: trained on, held out, or dropped for a reason; `fingerprint` is their reference's."""

    fingerprint: str
    train: PolicyPairs
    held_out: PolicyPairs
    sft: PolicyPairs | None = None
    """Demonstrations that are shown beside the rows trained on, where the recipe mixes some in."""


def open_rows(folder: Path, fingerprint: str) -> PolicyRows:
    """What `write_rows_of` wrote, and the SFT rows beside it, if there are any."""
    sft = PolicyPairs(folder / SFT_FILE) if (folder / SFT_FILE).is_file() else None
    train, held_out = (PolicyPairs(folder / f"{split}.arrow") for split in SPLITS)
    return PolicyRows(fingerprint, train, held_out, sft)


def write_rows_of(
    manifest: Manifest,
    context: Context,
    folder: Path,
    tokens: Tokenization,
    token_ids: TokenIds,
    fingerprint: str,
    method: Method,
    into: Path,
    record: Path,
) -> dict[str, int]:
    """Reads and joins the rows of the manifest in `folder`; `fingerprint` is the starting checkpoint's. Rows whose
    `token_ids` are not known are tokenised.

    `into` gets the pairs of each split, `record` a Parquet of (row_id, split, reason) of every row in the manifest's
    order. Rows that do not fit the token policy were dropped with the references; where the method has none, they are
    dropped here. Returns {reason: dropped rows}. Raises `BadInput` when the references are another model's, the
    template rewrites too many prompts or no row is left to train on, and `CorruptArtifact` when a row's ids are not
    those its reference was scored on or a row is unaccounted for.
    """
    if manifest.kind != method.data:
        raise BadInput(f"loss: {method.name} needs {method.data} preferences, and the data is {manifest.kind}")
    dropped: Counter[str] = Counter()
    rows = 0
    files = {split: PairsFile(into / f"{split}.arrow", schema_of(method)) for split in SPLITS}
    with open_split(folder, manifest) as split, pq.ParquetWriter(record, RECORD_SCHEMA, compression="zstd") as places:
        for index, shard in enumerate(manifest.shards):
            if method.needs_reference:
                _require_reference(shard, fingerprint)
            scored = _Scored(shard, context) if method.needs_reference else None
            path = context.fetch(shard.shard) / ROWS_FILE
            of_shard = _in_order_of(path, split.of_shard(index, RECORD_SCHEMA.names), shard)
            rows += len(of_shard)
            named = (place.as_py() for chunk in of_shard["split"].chunks for place in chunk)
            unfit: dict[str, str] = {}
            kept = ((row, name) for row, name in zip(iter_rows(path), named, strict=True) if name != "dropped")
            while batch := list(islice(kept, ROWS_AT_ONCE)):
                pairs = token_ids.pairs([row for row, _ in batch], tokens)
                found = {} if scored is None else {row.row_id: scored.of(row.row_id) for row, _ in batch}
                if method.coupled:
                    partners = {cells["partner_id"] for cells in found.values() if cells and cells["partner_id"]}
                    pairs |= _ids_of(partners - pairs.keys(), path, token_ids, tokens)
                for row, name in batch:
                    pair = pairs[row.row_id]
                    if scored is not None:
                        joined = _joined(row, found[row.row_id], pairs, fingerprint, method, tokens.policy)
                        files[name].add(_with_numbers(joined, row, method, shard))
                    elif isinstance(pair, Dropped):
                        unfit[row.row_id] = pair.reason
                    else:
                        for side in pair:
                            tokens.require_embeddings(side)  # no scorer has looked at these ids
                        files[name].add(PolicyPair(row.row_id, *pair, math.nan, math.nan, _prompt_id(row)))
            of_shard = _with_dropped(of_shard, unfit)
            require_few_rewritten(
                Counter(unfit.values()),
                of_shard["reason"].null_count,
                tokens.policy,
                f"the checkpoint that training starts from, with shard {shard.name},",
            )
            places.write_table(of_shard)
            dropped.update(of_shard["reason"].drop_null().to_pylist())
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


REMEDIES = {
    "weight": "preferences.weight_column names its column",
    "target_margin": "preferences.margin_column names its column; with target_margin: scores both sides need a score,"
    " and preferences.min_score_gap: 0 quarantines pairs without",
}


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


class _Scored:
    """A shard's reference log-probs, looked up in the order of its rows."""

    def __init__(self, shard: ManifestShard, context: Context) -> None:
        assert shard.reference is not None
        self._table = pq.read_table(logprobs_folder(context.fetch(shard.reference), shard.shard.digest) / LOGPROBS_FILE)
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


def _ids_of(row_ids: Set[str], path: Path, token_ids: TokenIds, tokens: Tokenization) -> dict[str, Pair | Dropped]:
    """The ids of rows of a shard, most of which are remembered."""
    found = {row_id: pair for batch in token_ids.ids(row_ids) for row_id, pair in batch}
    unread = (row for row in iter_rows(path) if row.row_id in row_ids and row.row_id not in found)
    while len(found) < len(row_ids) and (batch := list(islice(unread, ROWS_AT_ONCE))):
        found |= token_ids.pairs(batch, tokens)
    return found


def _joined(
    row: PreferenceRow,
    scored: dict[str, Any] | None,
    ids: Mapping[str, Pair | Dropped],
    fingerprint: str,
    method: Method,
    policy: TokenPolicy,
) -> PolicyRow:
    """A row with its reference log-probs; `ids` are the token ids of rows, partners among them."""
    pair = ids[row.row_id]
    if scored is None:
        raise CorruptArtifact(f"row {row.row_id} has no reference log-probs")
    if isinstance(pair, Dropped):
        raise CorruptArtifact(f"row {row.row_id} was scored, and is dropped now: {pair.reason}")
    made: PolicyRow
    if method.coupled:
        other = None if scored["partner_id"] is None else ids.get(scored["partner_id"])
        if isinstance(other, Dropped) or (scored["partner_id"] is not None and other is None):
            raise CorruptArtifact(f"row {row.row_id}: its partner {scored['partner_id']} is not a row of the shard")
        partner = None if other is None else mismatched(pair[0], other[0], policy.max_length)
        made = PolicyCompletion(row.row_id, pair[0], partner, bool(row.label), 0.0, 0.0, _prompt_id(row))
    else:
        made = PolicyPair(row.row_id, *pair, 0.0, 0.0, _prompt_id(row))
    logps = {"partner": math.nan} if method.coupled else {}
    for name, key in keys_of(fingerprint, sequences_of(method, made)).items():
        if key.hex() != scored.get(f"{name}_key"):
            raise CorruptArtifact(f"row {row.row_id}: the {name} side's token ids are not those that were scored")
        logps[name] = float(scored[f"{name}_logp"])
        if not math.isfinite(logps[name]):
            raise CorruptArtifact(f"row {row.row_id}: its reference log-probs are not finite: {name} {logps[name]}")
    return with_reference(made, logps)
