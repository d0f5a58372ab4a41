"""Files are read record by record; a bad record is told apart from a bad file."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.data.readers import Record, data_suffix, read_records
from alignment.data.validate import Validation
from alignment.errors import BadInput

RECORDS = [{"prompt": f"p{number}", "chosen": "é\u2028\x85 c", "rejected": "r\nr"} for number in range(1, 8)]
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x00"), max_size=20)
on_disk = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def jsonl(records: list[Any], end: str = "\n") -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + end for record in records).encode()


def as_csv(records: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def as_parquet(records: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue()


def save(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def values(url: str, **options: Any) -> list[Any]:
    return [record.value for record in read_records(url, **options)]


FILES = {
    "a.jsonl": jsonl(RECORDS),
    "crlf.jsonl": jsonl(RECORDS, "\r\n"),
    "bom.jsonl": b"\xef\xbb\xbf" + jsonl(RECORDS),
    "blank.ndjson": b"\n" + jsonl(RECORDS, "\n\n  \n"),
    "no_last_newline.jsonl": jsonl(RECORDS)[:-1],
    "a.jsonl.gz": gzip.compress(jsonl(RECORDS)),
    "two_members.jsonl.gz": gzip.compress(jsonl(RECORDS[:3])) + gzip.compress(jsonl(RECORDS[3:])),
    "gzip_unnamed.jsonl": gzip.compress(jsonl(RECORDS)),
    "list.json": json.dumps(RECORDS, indent=1).encode(),
    "list.json.gz": gzip.compress(json.dumps(RECORDS).encode()),
    "list_inside.jsonl": json.dumps(RECORDS, indent=1).encode(),
    "lines_inside.json": jsonl(RECORDS),
    "object.json": json.dumps({"version": 1, "data": RECORDS}).encode(),
    "a.csv": as_csv(RECORDS),
    "bom.csv": b"\xef\xbb\xbf" + as_csv(RECORDS),
    "a.csv.gz": gzip.compress(as_csv(RECORDS)),
    "a.parquet": as_parquet(RECORDS),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_records(tmp_path: Path, name: str) -> None:
    url = save(tmp_path / name, FILES[name])
    assert values(url) == RECORDS
    assert values(url, sha256=hashlib.sha256(FILES[name]).hexdigest()) == RECORDS


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_parts_are_contiguous_and_together_the_whole_file(tmp_path: Path, name: str, parts: int) -> None:
    url = save(tmp_path / name, FILES[name])
    runs = [list(read_records(url, part=part, parts=parts)) for part in range(parts)]
    assert [record for run in runs for record in run] == list(read_records(url))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


def test_more_parts_than_records_are_refused(tmp_path: Path) -> None:
    url = save(tmp_path / "a.jsonl", jsonl(RECORDS))
    with pytest.raises(BadInput, match=r"a\.jsonl.*7 records.*8"):
        list(read_records(url, part=0, parts=8))


@on_disk
@given(records=st.lists(st.fixed_dictionaries({"prompt": texts, "chosen": texts}), min_size=1, max_size=6))
def test_text_survives_jsonl_csv_and_parquet(tmp_path: Path, records: list[dict[str, str]]) -> None:
    for name, data in (("a.jsonl", jsonl(records)), ("a.csv", as_csv(records)), ("a.parquet", as_parquet(records))):
        assert values(save(tmp_path / name, data)) == records


def test_rows_are_numbered_by_line_in_jsonl(tmp_path: Path) -> None:
    url = save(tmp_path / "a.jsonl", b'{"a": 1}\n\n{"a": 2}\nnonsense\n')
    assert [(record.source_row, record.value, record.problem) for record in read_records(url)] == [
        (1, {"a": 1}, None),
        (3, {"a": 2}, None),
        (4, None, "not JSON"),
    ]


def test_a_line_that_is_not_utf8_keeps_its_text_with_bytes_escaped(tmp_path: Path) -> None:
    url = save(tmp_path / "a.jsonl", b'{"a": "caf\xe9"}\n{"a": 1}\n')
    assert list(read_records(url)) == [
        Record(1, problem="not UTF-8", text='{"a": "caf\\xe9"}'),
        Record(2, value={"a": 1}),
    ]


def test_a_line_nested_beyond_reason_is_not_json(tmp_path: Path) -> None:
    url = save(tmp_path / "a.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n" + jsonl([{"a": 1}]))
    assert [record.problem for record in read_records(url)] == ["not JSON", None]


@on_disk
@given(data=st.data())
def test_damaged_bytes_never_raise_and_every_line_is_accounted_for(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(b'{"z": 0}\n' + jsonl(RECORDS))
    for position in data.draw(st.lists(st.integers(1, len(content) - 1), max_size=20)):
        content[position] = data.draw(st.integers(0, 255))
    url = save(tmp_path / "a.jsonl", bytes(content))
    records = list(read_records(url))
    assert len(records) == sum(1 for line in bytes(content).split(b"\n") if line.strip(b" \t\r"))
    for record in records:
        record.text.encode("utf-8")


@on_disk
@given(data=st.data())
def test_a_damaged_gzip_or_parquet_file_is_read_or_refused_by_name(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["a.jsonl.gz", "a.parquet", "a.csv.gz", "list.json"]))
    content = bytearray(FILES[name])
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(1, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    url = save(tmp_path / name, bytes(content))
    try:
        list(read_records(url))
    except BadInput as error:
        assert url in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl.gz", b"plain", "not gzip"),
        ("a.jsonl.gz", gzip.compress(jsonl(RECORDS), mtime=0)[:-9], "cut short"),
        ("a.json", b'{"a": [1], "b": [2]}', "neither a JSON list"),
        ("a.json", b"[1, 2", "not JSON"),
        ("a.json", b'["\xff"]', "not UTF-8"),
        ("a.parquet", b"not parquet", "Parquet"),
        ("a.parquet", FILES["a.parquet"].replace(b"prompt", b"pr\xe5mpt"), "name is not UTF-8"),
        ("a.jsonl", b"", "empty"),
        ("a.jsonl", b"<!DOCTYPE html><html>", "web page"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        ("a.jsonl", "{}".encode("utf-16"), "UTF-16"),
        ("a.txt", b"x", "unknown format"),
        ("a.csv", b"prompt,prompt\n1,2\n", "twice"),
    ],
)
def test_a_file_that_cannot_be_read_as_a_whole_is_bad_input(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    url = save(tmp_path / name, data)
    with pytest.raises(BadInput, match=words) as error:
        list(read_records(url))
    assert error.value.file == url


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="no such file"):
        list(read_records(str(tmp_path / name)))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_changed_since_it_was_pinned_is_named(tmp_path: Path, name: str) -> None:
    url = save(tmp_path / name, FILES[name])
    with pytest.raises(BadInput, match="changed since it was pinned") as error:
        list(read_records(url, sha256="0" * 64))
    assert error.value.file == url


def test_csv_rows_of_the_wrong_width_or_encoding_are_problems_of_their_own(tmp_path: Path) -> None:
    data = b'prompt,chosen\na,b\n\nonly one\n1,2,3\ncaf\xe9,x\n"bad"quote,x\nc,"d\ne"\n'
    records = list(read_records(save(tmp_path / "a.csv", data)))
    assert [(record.source_row, record.value, record.problem) for record in records] == [
        (1, {"prompt": "a", "chosen": "b"}, None),
        (2, None, "wrong number of columns"),
        (3, None, "wrong number of columns"),
        (4, None, "not UTF-8"),
        (5, None, "malformed CSV"),
        (6, {"prompt": "c", "chosen": "d\ne"}, None),
    ]
    assert records[3].text == '{"prompt": "caf\\xe9", "chosen": "x"}'


def test_a_parquet_cell_that_is_not_utf8_spoils_its_row_only(tmp_path: Path) -> None:
    bad = pa.array([b"fine", b"caf\xe9", b"fine too"]).view(pa.binary()).cast(pa.binary())
    column = pa.Array.from_buffers(pa.string(), 3, bad.buffers())
    pq.write_table(pa.table({"prompt": column}), tmp_path / "a.parquet")
    records = list(read_records(str(tmp_path / "a.parquet")))
    assert [record.problem for record in records] == [None, "not UTF-8", None]
    assert "caf\\xe9" in records[1].text.replace("\\\\", "\\")


def test_files_are_read_from_any_fsspec_url() -> None:
    import fsspec

    fsspec.filesystem("memory").pipe_file("/shop/a.jsonl", jsonl(RECORDS))
    assert values("memory://shop/a.jsonl") == RECORDS


def test_an_unknown_protocol_is_bad_input() -> None:
    with pytest.raises(BadInput, match="nowhere"):
        list(read_records("nowhere://a.jsonl"))


def test_the_format_is_read_off_the_name_before_a_urls_query() -> None:
    assert data_suffix("https://host/a.jsonl.gz?download=true") == ".jsonl"
    assert data_suffix("A.PARQUET") == ".parquet"
    assert data_suffix("/folder.csv/notes.txt") is None


ODD_COLUMNS = {
    "a date after the year 9999": pa.array([2**31 - 1, 0], pa.int32()).view(pa.date32()),
    "a time zone that nobody knows": pa.array([1, 2], pa.int64()).view(pa.timestamp("us", "Not/AZone")),
    "a time beyond Python's": pa.array([2**62, 0], pa.int64()).view(pa.timestamp("ms")),
    "a duration beyond Python's": pa.array([2**62, 0], pa.int64()).view(pa.duration("s")),
    "a field twice in a struct": pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([3, 4])], names=["a", "a"]),
}


@pytest.mark.parametrize("column", ODD_COLUMNS)
def test_a_parquet_cell_that_python_has_no_value_for_costs_no_row(tmp_path: Path, column: str) -> None:
    rows = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(2)]
    path = tmp_path / "odd.parquet"
    pq.write_table(pa.Table.from_pylist(rows).append_column("unused", ODD_COLUMNS[column]), path)
    assert [{name: value[name] for name in rows[0]} for value in values(str(path))] == rows
    validation = Validation()
    assert len(list(validation.accepted(read_records(str(path)), "odd"))) == 2
    pq.write_table(pa.Table.from_pylist(rows).set_column(1, "chosen", ODD_COLUMNS[column]), path)
    validation = Validation()
    accepted = list(validation.accepted(read_records(str(path)), "odd"))
    assert len(accepted) + len(validation.quarantined) == 2 and validation.quarantined, (
        "a field never takes such a cell"
    )


def test_a_parquet_column_that_appears_twice_is_refused(tmp_path: Path) -> None:
    cells = pa.array(["a"])
    path = tmp_path / "twice.parquet"
    pq.write_table(pa.Table.from_arrays([cells, cells, cells], names=["prompt", "chosen", "chosen"]), path)
    with pytest.raises(BadInput, match=r"field 'chosen': this column appears twice"):
        values(str(path))


def test_a_record_with_a_key_twice_is_told_apart_and_the_others_are_read(tmp_path: Path) -> None:
    lines = [b'{"a": 1}', b'{"a": 1, "a": 2}', b'{"a": [{"b": 1, "b": 1}]}', b'{"c": {"a": 1}, "d": {"a": 2}}']
    for name, data in (("a.jsonl", b"\n".join(lines)), ("a.json", b"[" + b",".join(lines) + b"]")):
        records = list(read_records(save(tmp_path / name, data)))
        assert [record.problem for record in records] == [None, "key 'a' appears twice", "key 'b' appears twice", None]
        assert records[0].value == {"a": 1} and records[3].value == {"c": {"a": 1}, "d": {"a": 2}}
        assert records[1].value is None and '"a"' in records[1].text
