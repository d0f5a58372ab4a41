"""The file formats: each a stream of records that are parsed only when they are asked for."""

from __future__ import annotations

import csv
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.errors import BadInput
from alignment.preferences.opening import UTF8_BOM, Stream, open_seekable
from alignment.preferences.record import Record, describe, escaped

RECORD_KEYS = frozenset(
    {"prompt", "chosen", "rejected", "completion", "messages", "conversations", "instruction", "question"}
)
CELL_LIMIT = min(sys.maxsize, 2**31 - 1)  # csv takes a C long
Lazy = Callable[[], Record]


# JSON -------------------------------------------------------------------------------------------


def jsonl(lines: Iterable[bytes]) -> Iterator[Lazy]:
    """A record a line; blank lines count as lines and are no records."""
    for number, line in enumerate(lines, start=1):
        text = (line.removeprefix(UTF8_BOM) if number == 1 else line).strip(b" \t\r\n")
        if text:
            yield partial(_parse_line, number, text)


def _parse_line(number: int, line: bytes) -> Record:
    try:
        return Record(number, value=json.loads(line.decode("utf-8")))
    except UnicodeDecodeError:
        problem = "not UTF-8"
    except (ValueError, RecursionError):
        problem = "not JSON"
    return Record(number, problem=problem, text=line.decode("utf-8", "backslashreplace"))


def json_file(stream: Stream, url: str, *, or_lines: bool) -> Iterator[Lazy]:
    """A list, an object with one list in it, or a single record; JSONL under a .json name is read as such."""
    data = stream.read()
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if or_lines or _first_line_is_an_object(data):
            yield from jsonl(io.BytesIO(data))
            return
        reason = f"not UTF-8 (byte {error.start})" if isinstance(error, UnicodeDecodeError) else f"not JSON: {error}"
        raise BadInput(reason, file=url) from error
    for number, item in enumerate(_listed(value, url), start=1):
        yield partial(Record, number, value=item)


def _first_line_is_an_object(data: bytes) -> bool:
    first = data.removeprefix(UTF8_BOM).lstrip().split(b"\n", 1)[0]
    return isinstance(_parse_line(1, first).value, dict)


def _listed(value: Any, url: str) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        if RECORD_KEYS & value.keys():
            return [value]
        lists = [item for item in value.values() if isinstance(item, list)]
        if len(lists) == 1:
            return lists[0]
    raise BadInput("neither a JSON list of records nor an object with one list in it", file=url)


# CSV --------------------------------------------------------------------------------------------


def csv_file(stream: Stream, url: str, delimiter: str) -> Iterator[Lazy]:
    """Rows under a header; all cells are text."""
    csv.field_size_limit(CELL_LIMIT)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
    except csv.Error as error:
        raise BadInput(f"the header is not CSV: {error}", file=url) from error
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise BadInput("this column appears twice", file=url, field=twice[0])
    for number in itertools.count(1):
        try:
            cells = next(rows)
            while not cells:  # a blank line
                cells = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            yield partial(Record, number, problem="malformed CSV", text=str(error))
            continue
        yield partial(_parse_cells, number, header, cells)
    text.detach()  # the stream is not ours to close


def _parse_cells(number: int, header: list[str], cells: list[str]) -> Record:
    if len(cells) != len(header):
        return Record(number, problem="wrong number of columns", text=escaped(json.dumps(cells, ensure_ascii=False)))
    value = dict(zip(header, cells, strict=True))
    if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
        return Record(number, problem="not UTF-8", text=describe(value))
    return Record(number, value=value)


# Parquet ----------------------------------------------------------------------------------------


def parquet_file(url: str, sha256: str | None) -> Iterator[Lazy]:
    """Rows of all row groups, a batch in memory at a time."""
    with open_seekable(url, sha256) as file, _opened(file) as parquet:
        number = 0
        for batch in parquet.iter_batches(batch_size=256):
            for index in range(batch.num_rows):
                number += 1
                yield partial(_parse_row, number, batch, index)


def _opened(file: BinaryIO) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid("a column's name is not UTF-8") from error


def _parse_row(number: int, batch: pa.RecordBatch, index: int) -> Record:
    row = batch.slice(index, 1)
    try:
        return Record(number, value=row.to_pylist()[0])
    except UnicodeDecodeError:
        return Record(number, problem="not UTF-8", text=describe(_as_bytes(row)))


def _as_bytes(row: pa.RecordBatch) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            data = column.cast(pa.large_binary())[0].as_py()
            cells[name] = None if data is None else data.decode("utf-8", "backslashreplace")
    return cells
