"""The row: one preference (or one demonstration), named by what it says and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.digest import canonical_text, json_digest

# What a row says: plain text or messages, and how either stands in a Parquet cell.

Form = Literal["text", "chat"]
"""`text`: plain strings, which get no chat template. `chat`: messages, which do."""
Message = dict[str, str]
"""`role` and `content`, and reasoning under the name that the data gives it (`alignment.data.templates.REASONING`)."""
Content = str | tuple[Message, ...]


def content_id(content: dict[str, Any]) -> str:
    """32 hex digits over the content as it stands: no trimming, no Unicode normalisation."""
    return json_digest(content)[:32]


def form_of(content: Content) -> Form:
    """Whether the content is plain text or a conversation."""
    return "text" if isinstance(content, str) else "chat"


def encode(content: Content) -> str:
    """The content as one Parquet cell: text as it is, messages as canonical JSON."""
    return content if isinstance(content, str) else canonical_text(content)


def decode(form: str, cell: str) -> Content:
    """The inverse of `encode`."""
    return cell if form == "text" else tuple(json.loads(cell))


# Plain records to and from Parquet, a batch in memory at a time.

BATCH_ROWS = 1024


def write_records(path: str | Path, schema: pa.Schema, records: Iterable[dict[str, Any]]) -> int:
    """Writes records in the order given; a file with the schema even when there are none. Returns how many."""
    return _write(path, schema, records, lambda batch: pa.Table.from_pylist(batch, schema=schema))


T = TypeVar("T")


def _write(path: str | Path, schema: pa.Schema, rows: Iterable[T], table: Callable[[list[T]], pa.Table]) -> int:
    written = 0
    remaining = iter(rows)
    with pq.ParquetWriter(str(path), schema, compression="zstd") as writer:
        while batch := list(islice(remaining, BATCH_ROWS)):
            writer.write_table(table(batch))
            written += len(batch)
    return written


def iter_records(path: str | Path, groups: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
    """Records in file order, of all row groups or of those named."""
    with pq.ParquetFile(str(path)) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=groups):
            yield from batch.to_pylist()


def read_columns(path: str | Path, *columns: str) -> pa.Table:
    """Some columns of a file whole, without what `pyarrow.parquet.read_table` looks up for data sets of many files."""
    with pq.ParquetFile(str(path)) as file:
        return file.read(list(columns))


# Train or held out, by the prompt alone: a prompt never stands on both sides and never moves.

SCALE = 2.0**64


def split_at(prompt: Content, form: str) -> float:
    """Where a prompt stands between 0 and 1, evenly spread by its hash: the first 64 bits of a SHA-256 over 2**64.

    It is held out by every fraction above that. `prompt` may be given decoded or as its Parquet cell. The same in
    every shard, recipe and data set.
    """
    digest = hashlib.sha256(f"{form}\n{encode(prompt)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / SCALE


def is_held_out(prompt: Content, form: str, fraction: float) -> bool:
    """Whether a prompt belongs to the `fraction` (0 to 1) that is measured on and never trained on.

    A prompt held out at one fraction is held out at every larger one.
    """
    return split_at(prompt, form) < fraction


def are_held_out(split_at: pa.Array, fraction: float) -> pa.Array:
    """`is_held_out` of many prompts at once, by where they stand."""
    return pc.less(split_at, fraction)


ROWS_FILE = "rows.parquet"
SPLIT_AT = "split_at"
"""The column of `split_at`, so that who splits rows reads no text."""
PAIR_ID, CHOSEN_LENGTH, REJECTED_LENGTH = "pair_id", "chosen_length", "rejected_length"
"""The columns of `pair_id` and of the answers' lengths in characters, so that statistics read no text either."""
DERIVED = (SPLIT_AT, PAIR_ID, CHOSEN_LENGTH, REJECTED_LENGTH)
"""Columns that follow from a row's content. A shard of an earlier version may lack them."""

PREFERENCE_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("form", pa.string()),
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("completion", pa.string()),
        ("label", pa.bool_()),
        ("source", pa.string()),
        ("source_row", pa.int64()),
        (SPLIT_AT, pa.float64()),
        (PAIR_ID, pa.uint64()),
        (CHOSEN_LENGTH, pa.int32()),
        (REJECTED_LENGTH, pa.int32()),
        ("chosen_score", pa.float64()),
        ("rejected_score", pa.float64()),
        ("weight", pa.float64()),
        ("margin", pa.float64()),
        ("generator", pa.string()),
        ("judge", pa.string()),
        ("round", pa.int32()),
    ]
)
"""Shards of an earlier version have no columns of scores and no later ones."""
SFT_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("form", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("source", pa.string()),
        ("source_row", pa.int64()),
    ]
)


@dataclass(frozen=True)
class PreferenceRow:
    """A pair (`chosen`, `rejected`) or, unpaired, one `completion` with its `label` (True: wanted).

    `source` is the file's name and `source_row` its 1-based line or record. The scores are what the data gives the two
    sides, on its own scale, more for better; None where it gives none. `weight` and `margin` are those of the columns
    that the recipe names for them. Of a pair that was sampled, `generator` names the model (of two: chosen > rejected),
    `judge` who scored it, and `round` its round. None of these is part of `row_id`.
    """

    row_id: str
    form: Form
    prompt: Content
    chosen: Content | None
    rejected: Content | None
    completion: Content | None
    label: bool | None
    source: str
    source_row: int
    chosen_score: float | None = None
    rejected_score: float | None = None
    weight: float | None = None
    margin: float | None = None
    generator: str | None = None
    judge: str | None = None
    round: int | None = None

    @property
    def paired(self) -> bool:
        """Whether it has two sides; else it has one completion and a label."""
        return self.label is None


@dataclass(frozen=True)
class SftRow:
    """A prompt and the completion to learn."""

    row_id: str
    form: Form
    prompt: Content
    completion: Content
    source: str
    source_row: int


Scores = tuple[float | None, float | None]
"""Of the chosen and of the rejected side."""


def paired_row(
    prompt: Content, chosen: Content, rejected: Content, source: str, source_row: int, scores: Scores = (None, None)
) -> PreferenceRow:
    """A pair, named by its content; all three contents have the same form."""
    row_id = content_id({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return PreferenceRow(row_id, form_of(prompt), prompt, chosen, rejected, None, None, source, source_row, *scores)


def unpaired_row(prompt: Content, completion: Content, label: bool, source: str, source_row: int) -> PreferenceRow:
    """A completion with a thumb up or down, named by its content."""
    row_id = content_id({"prompt": prompt, "completion": completion, "label": label})
    return PreferenceRow(row_id, form_of(prompt), prompt, None, None, completion, label, source, source_row)


def sft_row(prompt: Content, completion: Content, source: str, source_row: int) -> SftRow:
    """A demonstration, named by its content."""
    row_id = content_id({"prompt": prompt, "completion": completion})
    return SftRow(row_id, form_of(prompt), prompt, completion, source, source_row)


TRAIN_FILE = "train.parquet"
HELD_OUT_FILE = "held_out.parquet"
"""The two files of demonstrations that an SFT data set is."""

# Preference rows --------------------------------------------------------------------------------


def text_of(content: Content) -> str:
    """What a person reads of it: the text, or the messages' contents, one after the other."""
    return content if isinstance(content, str) else "\n".join(message.get("content") or "" for message in content)


def length_of(content: Content) -> int:
    """Characters of `text_of`, without writing it."""
    if isinstance(content, str):
        return len(content)
    return sum(len(message.get("content") or "") for message in content) + max(0, len(content) - 1)


def pair_id(form: str, prompt: str, answers: Iterable[str]) -> int:
    """64 bits that name a prompt with its answers, given as Parquet cells, in whatever order the answers stand.

    Two rows with the same `pair_id` and another `row_id` contradict each other: the same two answers in the other
    order, or the same answer wanted once and not wanted once.
    """
    parts = "\0".join((form, prompt, *sorted(answers))).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(parts, digest_size=8).digest())


def write_rows(path: str | Path, rows: Iterable[PreferenceRow]) -> int:
    """Writes rows in the order given; returns how many."""
    return _write(path, PREFERENCE_SCHEMA, rows, _preference_table)


def iter_rows(path: str | Path, groups: Sequence[int] | None = None) -> Iterator[PreferenceRow]:
    """Rows of a `rows.parquet` in file order, of all row groups or of those named; a batch in memory at a time."""
    yield from map(row_of, iter_records(path, groups))


def row_of(cells: dict[str, Any]) -> PreferenceRow:
    """The row in the cells of such a file, which are used up."""
    form = cells["form"]
    for name in DERIVED:
        cells.pop(name, None)
    for name in ("prompt", "chosen", "rejected", "completion"):
        if cells[name] is not None:
            cells[name] = decode(form, cells[name])
    return PreferenceRow(**cells)


def read_rows(path: str | Path) -> list[PreferenceRow]:
    """All rows of such a file, in its order."""
    return list(iter_rows(path))


WRITTEN_AS_THEY_ARE = (
    "row_id",
    "form",
    "label",
    "source",
    "source_row",
    "chosen_score",
    "rejected_score",
    "weight",
    "margin",
    "generator",
    "judge",
    "round",
)


def _preference_table(rows: list[PreferenceRow]) -> pa.Table:
    """Column by column: a row of its own for each would cost as much as to read it."""
    cells: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in WRITTEN_AS_THEY_ARE}
    for name in ("prompt", "chosen", "rejected", "completion"):
        contents = [getattr(row, name) for row in rows]
        cells[name] = [None if content is None else encode(content) for content in contents]
        if name in ("chosen", "rejected"):
            lengths = [None if content is None else length_of(content) for content in contents]
            cells[CHOSEN_LENGTH if name == "chosen" else REJECTED_LENGTH] = lengths
    cells[SPLIT_AT] = list(map(split_at, cells["prompt"], cells["form"]))
    answers = zip(cells["chosen"], cells["rejected"], cells["completion"], strict=True)
    cells[PAIR_ID] = [
        pair_id(form, prompt, [answer for answer in each if answer is not None])
        for form, prompt, each in zip(cells["form"], cells["prompt"], answers, strict=True)
    ]
    return pa.table({field.name: pa.array(cells[field.name], field.type) for field in PREFERENCE_SCHEMA})


# SFT rows ---------------------------------------------------------------------------------------


def write_sft_rows(path: str | Path, rows: Iterable[SftRow]) -> int:
    """Writes rows in the order given; returns how many."""
    return write_records(path, SFT_SCHEMA, map(_sft_cells, rows))


def iter_sft_rows(path: str | Path) -> Iterator[SftRow]:
    """The demonstrations of a file that `write_sft_rows` wrote, one after the other."""
    for cells in iter_records(path):
        form = cells["form"]
        cells["prompt"], cells["completion"] = decode(form, cells["prompt"]), decode(form, cells["completion"])
        yield SftRow(**cells)


def read_sft_rows(path: str | Path) -> list[SftRow]:
    """All demonstrations of such a file, in its order."""
    return list(iter_sft_rows(path))


def _sft_cells(row: SftRow) -> dict[str, Any]:
    return {
        "row_id": row.row_id,
        "form": row.form,
        "prompt": encode(row.prompt),
        "completion": encode(row.completion),
        "source": row.source,
        "source_row": row.source_row,
    }
