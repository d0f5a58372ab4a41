"""Reads data files record by record: JSONL, JSON, CSV, TSV and Parquet, the text ones gzipped too, from any fsspec URL.

One bad record never stops a file: it comes out as a `Record` with a `problem`. A file that cannot be read
as a whole is `BadInput`. Reading one part of a big JSONL file costs little more than its bytes, as only the
part's records are parsed.
"""

from __future__ import annotations

from collections.abc import Iterator

from alignment.errors import BadInput
from alignment.preferences.formats import Lazy, csv_file, json_file, jsonl, parquet_file
from alignment.preferences.opening import UTF8_BOM, open_stream
from alignment.preferences.record import Record

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def data_suffix(name: str) -> str | None:
    """The format of a file by its name (without `.gz`), or None when it is none of ours."""
    path = name.partition("?")[0] if "://" in name else name
    bare = path.lower().removesuffix(".gz")
    return next((suffix for suffix in DATA_SUFFIXES if bare.endswith(suffix)), None)


def read_records(url: str, sha256: str | None = None, part: int = 0, parts: int = 1) -> Iterator[Record]:
    """Records in file order; of `parts` contiguous runs of about equal length, only run `part` (0-based).

    Raises `BadInput` naming the file if it is missing, damaged, not data, or not the one that `sha256` pins.
    """
    if not 0 <= part < parts:
        raise ValueError(f"part {part} of {parts}")
    first, last = 0, None
    if parts > 1:
        total = sum(1 for _ in _lazy_records(url, sha256))
        if total < parts:
            raise BadInput(f"has {total} records and cannot be split into {parts}", file=url)
        first, last = total * part // parts, total * (part + 1) // parts
    for position, lazy in enumerate(_lazy_records(url, sha256)):
        if position >= first and (last is None or position < last):
            yield lazy()


def _lazy_records(url: str, sha256: str | None) -> Iterator[Lazy]:
    suffix = data_suffix(url)
    if suffix is None:
        raise BadInput(f"unknown format; data files end in {', '.join(DATA_SUFFIXES)} (text also in .gz)", file=url)
    if suffix == ".parquet":
        yield from parquet_file(url, sha256)
        return
    with open_stream(url, sha256) as stream:
        if suffix in (".csv", ".tsv"):
            yield from csv_file(stream, url, "," if suffix == ".csv" else "\t")
        elif suffix == ".json" or stream.peek(256).removeprefix(UTF8_BOM).lstrip()[:1] == b"[":
            yield from json_file(stream, url, or_lines=suffix != ".json")
        else:
            yield from jsonl(stream)
