from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.errors import BadInput
from eval.suites.rows import read_rows


def test_csv_rows_are_texts_by_column_with_their_number(tmp_path: Path) -> None:
    text = 'id,prompt\n1,"How, then?"\n2,"two\nlines"\n'
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    expected = [(1, {"id": "1", "prompt": "How, then?"}), (2, {"id": "2", "prompt": "two\nlines"})]
    assert read_rows(tmp_path / "a.csv") == read_rows(tmp_path / "a.csv.gz") == expected


def test_parquet_rows_keep_their_nesting(tmp_path: Path) -> None:
    records = [{"q": "a", "choices": {"text": ["x"], "label": ["A"]}}, {"q": "b", "choices": {"text": [], "label": []}}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet") == [(1, records[0]), (2, records[1])]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.csv", b"id,prompt\n1,a\n2,b,c\n", "row 2: wrong number of columns"),
        ("a.csv", b"id,prompt\n1\n", "row 1: wrong number of columns"),
        ("a.csv", b"id,prompt\n1,\xff\n", "row 1: not UTF-8"),
        ("a.csv", b'id,prompt\n1,"a" b\n', "row 1: malformed CSV"),
        ("a.parquet", b"PAR1 no", "not readable as Parquet"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput, match=words):
        read_rows(tmp_path / name)
