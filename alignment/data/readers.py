"""The file formats: each a stream of records that are parsed only when they are asked for."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import itertools
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, TypeAlias

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from alignment.address import remember, whole
from alignment.errors import BadInput, no_such

# Opens a data file wherever it lies, checks that it is the pinned one, and says plainly when it is not data.

GZIP_MAGIC = b"\x1f\x8b"
UTF8_BOM = b"\xef\xbb\xbf"
WEB_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
BUFFER = 1 << 18

Stream: TypeAlias = "io.BufferedReader[Any]"


class HashingReader(io.RawIOBase):
    """A binary stream that hashes what passes through it."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._sha = hashlib.sha256()

    def readable(self) -> bool:
        """True, as `io.RawIOBase` asks."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads into the buffer, and hashes what was read."""
        block = self._stream.read(len(buffer))
        self._sha.update(block)
        buffer[: len(block)] = block
        return len(block)

    def finish(self) -> str:
        """SHA-256 of the whole stream, what was not read yet included."""
        while self.read(BUFFER):
            pass
        return self._sha.hexdigest()


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Turns what can go wrong with a whole file into one line that names it."""
    try:
        yield
    except FileNotFoundError:
        raise BadInput(no_such("file", url), file=url) from None
    except IsADirectoryError:
        raise BadInput("is a folder, not a file", file=url) from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise BadInput(f"the gzip data is damaged or cut short: {error}", file=url) from error
    except pa.ArrowException as error:
        raise BadInput(f"not readable as Parquet: {_first_line(error)}", file=url) from error
    except BadInput:
        raise
    except Exception as error:
        if "://" in url:  # a remote file system's own error: its text may hold the query that opens the URL
            raise BadInput(f"cannot be read: {_first_line(error)}", file=url) from None
        if isinstance(error, OSError | ImportError):
            raise BadInput(f"cannot be read: {_first_line(error)}", file=url) from error
        raise


@contextmanager
def open_stream(url: str, sha256: str | None = None) -> Iterator[Stream]:
    """The file's bytes, unzipped, to be read once from start to end.

    On leaving without an error the rest is read too and the file's SHA-256 must be `sha256`, if given.
    Raises `BadInput` naming the file.
    """
    with _open(url) as file:
        hashing = HashingReader(file)
        raw = io.BufferedReader(hashing, BUFFER)
        stream: Stream = raw
        if raw.peek(2)[:2] == GZIP_MAGIC:
            stream = io.BufferedReader(gzip.GzipFile(fileobj=raw), BUFFER)
        elif url.endswith(".gz"):
            raise BadInput("is named .gz but is not gzip", file=url)
        refuse_what_is_not_data(stream.peek(256)[:256], url)
        yield stream
        while raw.read(BUFFER):
            pass
        verify(url, hashing.finish(), sha256)


@contextmanager
def open_seekable(url: str, sha256: str | None = None) -> Iterator[BinaryIO]:
    """The file as it is, for formats that jump about in it; verified before the first read."""
    with _open(url) as file:
        if sha256 is not None:
            verify(url, HashingReader(file).finish(), sha256)
            file.seek(0)
        yield file


def verify(url: str, found: str, pinned: str | None) -> None:
    """Raises `BadInput` unless the sha256 `found` of a file is the one that was pinned, if one was."""
    if pinned is not None and found != pinned:
        raise BadInput(f"has changed since it was pinned: sha256 is {found[:12]}…, was {pinned[:12]}…", file=url)


def refuse_what_is_not_data(head: bytes, url: str) -> None:
    """Raises `BadInput` for what downloads leave behind in place of data."""
    start = head.removeprefix(UTF8_BOM).lstrip().lower()
    if not head:
        raise BadInput("the file is empty", file=url)
    if start.startswith(WEB_PAGE):
        raise BadInput("is a web page, not data; was the download refused?", file=url)
    if start.startswith(LFS_POINTER):
        raise BadInput("is a Git LFS pointer, not the data; run `git lfs pull`", file=url)
    if head.startswith(UTF16_BOMS):
        raise BadInput("is UTF-16; save it as UTF-8", file=url)


@contextmanager
def _open(url: str) -> Iterator[BinaryIO]:
    with reading(url):
        try:
            opened = fsspec.open(whole(url), "rb")
        except ValueError as error:  # fsspec's word for a protocol it does not know
            raise BadInput(_first_line(error), file=url) from None
        with opened as file:
            yield file


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# One record as it stands in its file, and how it is shown when it is set aside.


@dataclass(frozen=True)
class Record:
    """One record as it stands in its file; with a `problem`, its `text` stands for it, bytes escaped."""

    source_row: int
    """1-based: the line in JSONL, the record in every other format."""
    value: Any = None
    problem: str | None = None
    text: str = ""
    records: int = 1
    """Records of the file that this one stands for."""


def describe(value: Any) -> str:
    """A record as one line of JSON that can be stored anywhere."""
    try:
        return escaped(json.dumps(value, ensure_ascii=False, default=str))
    except RecursionError:
        return "(nested too deeply to show)"


def escaped(text: str) -> str:
    """Text with what UTF-8 cannot hold (lone surrogates, smuggled bytes) written as backslash escapes."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


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


Repeated: TypeAlias = "dict[int, tuple[str, dict[str, Any]]]"
"""What is wrong with objects that have a key twice, and they themselves, by their `id`."""


def _loads(text: str) -> tuple[Any, Repeated]:
    """The value of a JSON text, and the objects in it with a key twice: `json` would keep the last of the values and
    lose the others."""
    repeated: Repeated = {}

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            names = Counter(name for name, _ in pairs)
            repeated[id(value)] = (f"key '{escaped(names.most_common(1)[0][0])[:60]}' appears twice", value)
        return value

    return json.loads(text, object_pairs_hook=as_dict), repeated


def _repeated_in(value: Any, repeated: Repeated) -> str | None:
    """What is wrong with the first object in a value that has a key twice."""
    if not repeated or not isinstance(value, dict | list):
        return None
    if id(value) in repeated:
        return repeated[id(value)][0]
    inside = value.values() if isinstance(value, dict) else value
    return next((problem for item in inside if (problem := _repeated_in(item, repeated))), None)


def _parse_line(number: int, line: bytes) -> Record:
    try:
        value, repeated = _loads(line.decode("utf-8"))
        if not repeated:
            return Record(number, value=value)
        problem, _ = next(iter(repeated.values()))
    except UnicodeDecodeError:
        problem = "not UTF-8"
    except (ValueError, RecursionError):
        problem = "not JSON"
    return Record(number, problem=problem, text=line.decode("utf-8", "backslashreplace"))


def json_file(stream: Stream, url: str, *, or_lines: bool) -> Iterator[Lazy]:
    """A list, an object with one list in it, or a single record; JSONL under a .json name is read as such."""
    data = stream.read()
    try:
        value, repeated = _loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if or_lines or _first_line_is_an_object(data):
            yield from jsonl(io.BytesIO(data))
            return
        reason = f"not JSON: {'nested too deeply' if isinstance(error, RecursionError) else error}"
        if isinstance(error, UnicodeDecodeError):
            reason = f"not UTF-8 (byte {error.start})"
        raise BadInput(reason, file=url) from error
    for number, item in enumerate(_listed(value, url), start=1):
        if (problem := _repeated_in(item, repeated)) is not None:
            yield partial(Record, number, problem=problem, text=describe(item))
        else:
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
        names = parquet.schema_arrow.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise BadInput("this column appears twice", file=url, field=twice[0])
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


@dataclass(frozen=True)
class Unreadable:
    """Stands for a Parquet cell that Python has no value for: a date after the year 9999, a time zone that nobody
    knows, a struct that names a field twice. It is neither text nor number, so that no field takes it."""

    type: str

    def __str__(self) -> str:
        return f"(a {self.type} without a value in Python)"


def _parse_row(number: int, batch: pa.RecordBatch, index: int) -> Record:
    row = batch.slice(index, 1)
    try:
        return Record(number, value=row.to_pylist()[0])
    except UnicodeDecodeError:
        return Record(number, problem="not UTF-8", text=describe(_as_bytes(row)))
    except (ArithmeticError, LookupError, ValueError, pa.ArrowException):
        pass  # a cell of a type whose every value Python does not hold: the other cells are as good as before
    try:
        return Record(number, value={name: _cell(row.column(name)) for name in row.schema.names})
    except UnicodeDecodeError:
        return Record(number, problem="not UTF-8", text=describe(_as_bytes(row)))


def _cell(column: pa.Array) -> Any:
    try:
        return column[0].as_py()
    except UnicodeDecodeError:
        raise
    except (ArithmeticError, LookupError, ValueError, pa.ArrowException):
        return Unreadable(str(column.type))


def _as_bytes(row: pa.RecordBatch) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            data = column.cast(pa.large_binary())[0].as_py()
            cells[name] = None if data is None else data.decode("utf-8", "backslashreplace")
    return cells


# Reads data files record by record: JSONL, JSON, CSV, TSV and Parquet, the text ones gzipped too, from any fsspec URL.
#
# One bad record never stops a file: it comes out as a `Record` with a `problem`. A file that cannot be read
# as a whole is `BadInput`. Reading one part of a big JSONL file costs little more than its bytes, as only the
# part's records are parsed.

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def data_suffix(name: str) -> str | None:
    """The format of a file by its name (without `.gz`), or None when it is none of ours."""
    path = name.partition("?")[0] if "://" in name else name
    bare = path.lower().removesuffix(".gz")
    return next((suffix for suffix in DATA_SUFFIXES if bare.endswith(suffix)), None)


def read_records(
    url: str, sha256: str | None = None, part: int = 0, parts: int = 1, unnamed: str | None = None
) -> Iterator[Record]:
    """Records in file order; of `parts` contiguous runs of about equal length, only run `part` (0-based).

    `unnamed` is the format (a suffix) of a file whose name tells none. Raises `BadInput` naming the file if it is
    missing, damaged, not data, or not the one that `sha256` pins.
    """
    url = remember(url)
    if not 0 <= part < parts:
        raise ValueError(f"part {part} of {parts}")
    first, last = 0, None
    if parts > 1:
        total = sum(1 for _ in _lazy_records(url, sha256, unnamed))
        if total < parts:
            raise BadInput(f"has {total} records and cannot be split into {parts}", file=url)
        first, last = total * part // parts, total * (part + 1) // parts
    for position, lazy in enumerate(_lazy_records(url, sha256, unnamed)):
        if position >= first and (last is None or position < last):
            yield lazy()


def parse_records(data: bytes, name: str, suffix: str = ".jsonl") -> Iterator[Record]:
    """Records in the bytes of a text file; `name` stands for it in errors."""
    return (lazy() for lazy in _text_records(io.BufferedReader(io.BytesIO(data)), name, suffix))  # type: ignore[arg-type]


def _lazy_records(url: str, sha256: str | None, unnamed: str | None) -> Iterator[Lazy]:
    suffix = data_suffix(url) or unnamed
    if suffix is None:
        raise BadInput(f"unknown format; data files end in {', '.join(DATA_SUFFIXES)} (text also in .gz)", file=url)
    if suffix == ".parquet":
        yield from parquet_file(url, sha256)
        return
    with open_stream(url, sha256) as stream:
        yield from _text_records(stream, url, suffix)


def _text_records(stream: Stream, url: str, suffix: str) -> Iterator[Lazy]:
    if suffix in (".csv", ".tsv"):
        yield from csv_file(stream, url, "," if suffix == ".csv" else "\t")
    elif suffix == ".json" or stream.peek(256).removeprefix(UTF8_BOM).lstrip()[:1] == b"[":
        yield from json_file(stream, url, or_lines=suffix != ".json")
    else:
        yield from jsonl(stream)
