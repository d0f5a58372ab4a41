"""JSON lines, read with the row number that a person needs when one is wrong."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec

from alignment.errors import BadInput
from alignment.stages import SourceFile


def parse_records(data: bytes, file: str) -> list[dict[str, Any]]:
    """The objects in UTF-8 JSON lines, or in one JSON list; blank lines are skipped.

    Raises `BadInput` with the row of the first line that is not an object.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput("not UTF-8", file=file, row=data[: error.start].count(b"\n") + 1) from error
    if text.lstrip().startswith("["):
        return _parse_list(text, file)
    records: list[dict[str, Any]] = []
    for row, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"not JSON: {error.msg}", file=file, row=row) from error
        if not isinstance(record, dict):
            raise BadInput("expected a JSON object", file=file, row=row)
        records.append(record)
    return records


def _parse_list(text: str, file: str) -> list[dict[str, Any]]:
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"not JSON: {error.msg}", file=file, row=error.lineno) from error
    for row, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise BadInput("expected a JSON object", file=file, row=row)
    return list(records)


def read_bytes(url: str) -> bytes:
    """A local file or fsspec URL, as it lies; raises `BadInput` when it cannot be read."""
    try:
        with fsspec.open(url, "rb") as stream:
            data: bytes = stream.read()
    except FileNotFoundError:
        raise BadInput("no such file", file=url) from None
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", file=url) from error
    return data


def unzipped(data: bytes, url: str) -> bytes:
    if not url.endswith(".gz"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise BadInput(f"not a gzip file: {error}", file=url) from error


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The JSON objects in a file (`.gz` too)."""
    return parse_records(unzipped(read_bytes(str(path)), str(path)), str(path))


def read_pinned_records(source: SourceFile) -> list[dict[str, Any]]:
    """The JSON objects in a pinned file; raises `BadInput` when its bytes are no longer those pinned."""
    data = read_bytes(source.url)
    if hashlib.sha256(data).hexdigest() != source.sha256:
        raise BadInput("has changed since it was pinned for this run; start the run again", file=source.url)
    return parse_records(unzipped(data, source.url), source.url)


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
