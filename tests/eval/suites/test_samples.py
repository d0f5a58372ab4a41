from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.errors import BadInput
from eval.suites.samples import Sample, metric_means, read_samples, sample_detail, samples_digest, write_samples

ROWS = [
    Sample("ifeval", "1:0", "1", "inst", 1.0, "naïve \ud83e\udd80".encode("utf-16", "surrogatepass").decode("utf-16")),
    Sample("ifeval", "1:1", "1", "inst", None, "", '{"failed": "too long"}'),
]


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_samples(tmp_path / "samples.parquet", ROWS)
    assert read_samples(tmp_path / "samples.parquet") == ROWS
    assert read_samples(tmp_path) == ROWS


def test_no_samples_are_a_file_with_the_same_columns(tmp_path: Path) -> None:
    write_samples(tmp_path / "samples.parquet", [])
    assert read_samples(tmp_path) == []


def test_the_digest_does_not_depend_on_order_and_does_on_values() -> None:
    changed = Sample("ifeval", "1:0", "1", "inst", 0.0, ROWS[0].response)
    assert samples_digest(ROWS) == samples_digest(ROWS[::-1])
    assert samples_digest(ROWS) != samples_digest([changed, ROWS[1]])


def test_unmeasured_rows_do_not_count_in_a_mean() -> None:
    (mean,) = metric_means(ROWS, ["inst", "other"]).values()
    assert (mean.value, mean.n) == (1.0, 1)


def test_what_is_no_samples_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("hello")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    for name, words in {"none": "no such file", "text": "not a Parquet file", "other": "no column suite"}.items():
        with pytest.raises(BadInput, match=words):
            read_samples(tmp_path / f"{name}.parquet")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("value", float("nan"), "row 2, field 'value': nan is not a finite number"),
        ("value", float("-inf"), "row 2, field 'value'"),
        ("value", -1e200, "row 2, field 'value': -1e[+]200 is beyond 1e[+]100"),
        *((name, None, f"row 2, field '{name}'") for name in ("suite", "id", "cluster", "metric")),
    ],
)
def test_a_row_without_a_name_or_with_an_infinite_value_is_named(
    tmp_path: Path, column: str, value: float | None, words: str
) -> None:
    write_samples(tmp_path / "samples.parquet", [ROWS[0], replace(ROWS[0], **{column: value})])  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=words):
        read_samples(tmp_path)


def test_a_detail_names_what_is_known_in_one_order() -> None:
    assert sample_detail(turn=1, category=None, against="β") == '{"against": "β", "turn": 1}'


def test_values_that_are_text_are_not_guessed_to_be_numbers(tmp_path: Path) -> None:
    write_samples(tmp_path / "samples.parquet", ROWS)
    table = pq.read_table(tmp_path / "samples.parquet")
    text = table.set_column(table.column_names.index("value"), "value", pa.array([None, "0.5"]))
    pq.write_table(text, tmp_path / "samples.parquet")
    with pytest.raises(BadInput, match="row 2, field 'value': holds string, not numbers"):
        read_samples(tmp_path)


def test_a_samples_file_whose_texts_are_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    write_samples(path, [Sample("s", "1", "c", "m", 1.0, "r")])
    bad = pa.array([b"\xe4"], pa.binary()).view(pa.string())
    pq.write_table(pq.read_table(path).set_column(5, "response", bad), path)
    with pytest.raises(BadInput, match="not a samples file: a text in it is not UTF-8"):
        read_samples(path)


def test_a_samples_file_with_a_column_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    write_samples(path, [Sample("s", "1", "c", "m", 1.0, "r")])
    table = pq.read_table(path)
    pq.write_table(table.append_column("detail", table.column("detail")), path)
    with pytest.raises(BadInput, match=r"samples\.parquet, field 'detail': this column appears twice"):
        read_samples(path)
