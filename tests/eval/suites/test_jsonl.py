from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from alignment.errors import BadInput
from eval.suites.rows import parse_rows, read_records

DEEP = "[" * 100_000


def test_rows_are_source_lines_and_blank_lines_count() -> None:
    assert parse_rows(b'\n{"a": 1}\n\n{"a": 2}\n', "f") == [(2, {"a": 1}), (4, {"a": 2})]
    assert parse_rows(b'[{"a": 1},\n\n{"a": 2}]', "f") == [(1, {"a": 1}), (2, {"a": 2})]
    assert parse_rows(b"", "f") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{}\n\n{"a": ' + DEEP, "f, row 3: not JSON"),
        (DEEP, "f, row 1: not JSON"),
        ('{}\n{"a": ' + "1" * 5000 + "}", "f, row 2: not JSON"),
        ("\n\n3", "f, row 3: expected a JSON object"),
        ("[{},\n{]", "f, row 1: not JSON"),
    ],
)
def test_what_cannot_be_parsed_is_named_by_its_row(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        parse_rows(text.encode(), "f")


def test_a_damaged_gzip_file_is_named_wherever_it_is_damaged(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b'{"a": %d}\n' % n for n in range(500)))
    path = tmp_path / "data.jsonl.gz"
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        for data in (bytes(damaged), whole[:place]):
            path.write_bytes(data)
            try:
                read_records(path)
            except BadInput as error:
                assert error.file == str(path)
