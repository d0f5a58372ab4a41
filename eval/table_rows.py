"""Rows of evaluation files that are no JSON: CSV with a header, and Parquet as the hub stores it."""

from __future__ import annotations

import csv
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.errors import BadInput


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
