"""Rows of evaluation files, read by `alignment.data.readers`; the first record that is not an object is an error.

A bad preference record is set aside. Questions, answers and judgments are not: every one of them counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alignment.address import remember
from alignment.data import readers
from alignment.data.readers import Record
from alignment.errors import BadInput
from alignment.stages.stage import SourceFile

Row = tuple[int, dict[str, Any]]
"""The 1-based line of an object in JSON lines, or its number in a JSON list, CSV or Parquet file, with the object."""
DEFAULT_FORMAT = ".jsonl"
"""The format of a file whose name has no known ending."""


def parse_rows(data: bytes, file: str) -> list[Row]:
    """The objects in UTF-8 JSON lines, or in a JSON list. Blank lines are skipped, but counted.

    Raises `BadInput` with the row of the first line that is not an object.
    """
    return _rows(readers.parse_records(data, file), file)


def read_rows(path: str | Path, sha256: str | None = None) -> list[Row]:
    """The objects in a file (JSON, JSON lines, CSV, Parquet, `.gz` too), each with its row.

    Raises `BadInput` for a file that cannot be read, a record that is not an object, and bytes that do not have the
    given `sha256`.
    """
    url = remember(str(path))
    return _rows(readers.read_records(url, sha256, unnamed=DEFAULT_FORMAT), url)


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The objects in a file."""
    return [record for _, record in read_rows(path)]


def read_pinned_rows(source: SourceFile) -> list[Row]:
    """The objects in a pinned file, each with its row; raises `BadInput` if its bytes have changed since."""
    return read_rows(source.url, source.sha256)


def _rows(records: Iterable[Record], file: str) -> list[Row]:
    rows: list[Row] = []
    for record in records:
        if record.problem is not None:
            raise BadInput(record.problem, file=file, row=record.source_row)
        if not isinstance(record.value, dict):
            raise BadInput("expected a JSON object", file=file, row=record.source_row)
        rows.append((record.source_row, record.value))
    return rows


def check_text(fields: Mapping[str, Any], file: str, row: int) -> None:
    """Raises `BadInput` that names a field with half a surrogate pair, which JSON can write and UTF-8 cannot."""
    for field, value in fields.items():
        try:
            json.dumps([field, value], ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            half = f"U+{ord(error.object[error.start]):04X}"
            name = field.encode("ascii", "backslashreplace").decode()
            problem = f"text with {half}, half of a surrogate pair, which is not a character"
            raise BadInput(problem, file=file, row=row, field=name) from None


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes JSON lines in UTF-8; what JSON has no form for (a date of a Parquet file) as its text."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
