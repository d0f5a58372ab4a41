"""JSON lines (and CSV, Parquet), read with the row number that a person needs when one is wrong."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from alignment.address import bare, no_such_file, remember, whole
from alignment.errors import BadInput
from alignment.stages import SourceFile

# Rows of evaluation files that are no JSON: CSV with a header, and Parquet as the hub stores it.


def csv_rows(data: bytes, file: str) -> list[tuple[int, dict[str, Any]]]:
    """Texts by column, each row with the line it ends on. Raises `BadInput` naming a row of another width."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput("not UTF-8", file=file, row=data[: error.start].count(b"\n") + 1) from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        for record in reader:
            if None in record or None in record.values():
                raise BadInput(f"expected {len(reader.fieldnames or ())} columns", file=file, row=reader.line_num)
            rows.append((reader.line_num, dict(record)))
    except csv.Error as error:
        raise BadInput(f"not CSV: {error}", file=file, row=reader.line_num + 1) from error
    return rows


def parquet_rows(data: bytes, file: str) -> list[tuple[int, dict[str, Any]]]:
    """Values by column, numbered from 1."""
    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowException as error:
        raise BadInput(f"not a Parquet file: {str(error).splitlines()[0]}", file=file) from error
    return list(enumerate(table.to_pylist(), start=1))


Row = tuple[int, dict[str, Any]]
"""An object with the 1-based source line it stands on, or its number in a JSON list."""


def parse_rows(data: bytes, file: str) -> list[Row]:
    """The objects in UTF-8 JSON lines, or in one JSON list; blank lines are skipped and still counted.

    Raises `BadInput` with the row of the first line that is not an object.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput("not UTF-8", file=file, row=data[: error.start].count(b"\n") + 1) from error
    if text.lstrip().startswith("["):
        return _parse_list(text, file)
    lines = enumerate(text.split("\n"), start=1)
    return _objects(((row, _parse(line, file, row)) for row, line in lines if line.strip()), file)


def _parse_list(text: str, file: str) -> list[Row]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"not JSON: {error.msg}", file=file, row=error.lineno) from error
    except (RecursionError, ValueError) as error:
        raise BadInput(_unreadable(error), file=file) from error
    return _objects(enumerate(values, start=1), file)


def _parse(line: str, file: str, row: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"not JSON: {error.msg}", file=file, row=row) from error
    except (RecursionError, ValueError) as error:
        raise BadInput(_unreadable(error), file=file, row=row) from error


def _unreadable(error: Exception) -> str:
    """What is wrong with text that is JSON and yet too much for the parser: its depth, or a number's length."""
    return "JSON nested too deeply" if isinstance(error, RecursionError) else f"JSON that cannot be read: {error}"


def _objects(values: Iterable[tuple[int, Any]], file: str) -> list[Row]:
    rows: list[Row] = []
    for row, value in values:
        if not isinstance(value, dict):
            raise BadInput("expected a JSON object", file=file, row=row)
        rows.append((row, value))
    return rows


def check_text(fields: Mapping[str, Any], file: str, row: int) -> None:
    """Raises `BadInput` naming the field that holds half a surrogate pair: JSON can spell it, no UTF-8 file hold it."""
    for field, value in fields.items():
        try:
            json.dumps([field, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"U+{ord(error.object[error.start]):04X}"
            name = field.encode("ascii", "backslashreplace").decode()
            problem = f"text with {half}, half of a surrogate pair, which is no character"
            raise BadInput(problem, file=file, row=row, field=name) from None


def read_bytes(url: str) -> bytes:
    """A local file or fsspec URL, as it lies; raises `BadInput` when it cannot be read."""
    url = remember(url)
    try:
        with fsspec.open(whole(url), "rb") as stream:
            data: bytes = stream.read()
    except FileNotFoundError:
        raise BadInput(no_such_file(url), file=url) from None
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise BadInput(problem, file=url) from (None if "://" in url else error)
    except Exception as error:  # each remote file system has errors of its own, with the whole address in their text
        if "://" not in url:
            raise
        raise BadInput(f"cannot be read: {type(error).__name__}: {error}", file=url) from None
    return data


def unzipped(data: bytes, url: str) -> bytes:
    if not url.endswith(".gz"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"not a whole gzip file: {error}", file=url) from error


def rows_of(data: bytes, file: str) -> list[Row]:
    """The rows in a file's bytes, by the ending of its name: CSV, Parquet, else JSON; `.gz` too."""
    data, name = unzipped(data, file), file.removesuffix(".gz")
    if name.endswith(".csv"):
        return csv_rows(data, file)
    return parquet_rows(data, file) if name.endswith(".parquet") else parse_rows(data, file)


def read_rows(path: str | Path) -> list[Row]:
    """The objects in a file, each with its row."""
    return rows_of(read_bytes(str(path)), bare(str(path)))


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The JSON objects in a file (`.gz` too)."""
    return [record for _, record in read_rows(path)]


def read_pinned_rows(source: SourceFile) -> list[Row]:
    """The objects in a pinned file, each with its row.

    Raises `BadInput` when its bytes are no longer those pinned.
    """
    data = read_bytes(source.url)
    if hashlib.sha256(data).hexdigest() != source.sha256:
        raise BadInput("has changed since it was pinned for this run; start the run again", file=source.url)
    return rows_of(data, source.url)


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
