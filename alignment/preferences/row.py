"""The row: one preference (or one demonstration), named by what it says and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from alignment.preferences.content import Content, Form, content_id, decode, encode, form_of
from alignment.preferences.parquet import iter_records, write_records
from alignment.preferences.split import split_at

ROWS_FILE = "rows.parquet"
SPLIT_AT = "split_at"
"""The column of `split_at`, so that who splits rows reads no text."""

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
    ]
)
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

    `source` is the file's name and `source_row` its 1-based line or record; neither is part of `row_id`.
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

    @property
    def paired(self) -> bool:
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


def paired_row(prompt: Content, chosen: Content, rejected: Content, source: str, source_row: int) -> PreferenceRow:
    """A pair, named by its content; all three contents have the same form."""
    row_id = content_id({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return PreferenceRow(row_id, form_of(prompt), prompt, chosen, rejected, None, None, source, source_row)


def unpaired_row(prompt: Content, completion: Content, label: bool, source: str, source_row: int) -> PreferenceRow:
    """A completion with a thumb up or down, named by its content."""
    row_id = content_id({"prompt": prompt, "completion": completion, "label": label})
    return PreferenceRow(row_id, form_of(prompt), prompt, None, None, completion, label, source, source_row)


def sft_row(prompt: Content, completion: Content, source: str, source_row: int) -> SftRow:
    """A demonstration, named by its content."""
    row_id = content_id({"prompt": prompt, "completion": completion})
    return SftRow(row_id, form_of(prompt), prompt, completion, source, source_row)


# Preference rows --------------------------------------------------------------------------------


def write_rows(path: str | Path, rows: Iterable[PreferenceRow]) -> int:
    """Writes rows in the order given; returns how many."""
    return write_records(path, PREFERENCE_SCHEMA, map(_preference_cells, rows))


def iter_rows(path: str | Path, groups: Sequence[int] | None = None) -> Iterator[PreferenceRow]:
    """Rows of a `rows.parquet` in file order, of all row groups or of those named; a batch in memory at a time."""
    for cells in iter_records(path, groups):
        form = cells["form"]
        cells.pop(SPLIT_AT, None)
        for name in ("prompt", "chosen", "rejected", "completion"):
            if cells[name] is not None:
                cells[name] = decode(form, cells[name])
        yield PreferenceRow(**cells)


def read_rows(path: str | Path) -> list[PreferenceRow]:
    return list(iter_rows(path))


def _preference_cells(row: PreferenceRow) -> dict[str, Any]:
    return {
        "row_id": row.row_id,
        "form": row.form,
        "prompt": encode(row.prompt),
        "chosen": None if row.chosen is None else encode(row.chosen),
        "rejected": None if row.rejected is None else encode(row.rejected),
        "completion": None if row.completion is None else encode(row.completion),
        "label": row.label,
        "source": row.source,
        "source_row": row.source_row,
        SPLIT_AT: split_at(row.prompt, row.form),
    }


# SFT rows ---------------------------------------------------------------------------------------


def write_sft_rows(path: str | Path, rows: Iterable[SftRow]) -> int:
    """Writes rows in the order given; returns how many."""
    return write_records(path, SFT_SCHEMA, map(_sft_cells, rows))


def iter_sft_rows(path: str | Path) -> Iterator[SftRow]:
    for cells in iter_records(path):
        form = cells["form"]
        cells["prompt"], cells["completion"] = decode(form, cells["prompt"]), decode(form, cells["completion"])
        yield SftRow(**cells)


def read_sft_rows(path: str | Path) -> list[SftRow]:
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
