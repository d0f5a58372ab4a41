"""Rows keep their content and are named by it alone."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.data.rows import (
    PreferenceRow,
    paired_row,
    read_rows,
    read_sft_rows,
    sft_row,
    split_at,
    unpaired_row,
    write_rows,
    write_sft_rows,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
chats = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "system"]), texts),
    max_size=3,
).map(tuple)
answers = texts.map(lambda text: ({"role": "assistant", "content": text},))
pairs = st.one_of(
    st.builds(paired_row, texts, texts, texts, texts, st.integers(1, 2**40)),
    st.builds(paired_row, chats, answers, answers, texts, st.integers(1, 2**40)),
)
unpaired = st.builds(unpaired_row, texts, texts, st.booleans(), texts, st.integers(1, 99))
on_disk = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@on_disk
@given(rows=st.lists(st.one_of(pairs, unpaired), max_size=8))
def test_rows_come_back_from_parquet_as_they_were(tmp_path: Path, rows: list[PreferenceRow]) -> None:
    assert write_rows(tmp_path / "rows.parquet", rows) == len(rows)
    assert read_rows(tmp_path / "rows.parquet") == rows


@on_disk
@given(rows=st.lists(st.one_of(pairs, unpaired), min_size=1, max_size=8))
def test_each_row_is_written_with_its_place_in_the_split_and_read_without_it(
    tmp_path: Path, rows: list[PreferenceRow]
) -> None:
    path = tmp_path / "rows.parquet"
    write_rows(path, rows)
    table = pq.read_table(path)
    assert table["split_at"].to_pylist() == [split_at(row.prompt, row.form) for row in rows]
    pq.write_table(table.drop_columns("split_at"), path)
    assert read_rows(path) == rows, "an earlier version wrote no such column"


@on_disk
@given(prompt=chats, completion=answers, text=texts)
def test_sft_rows_come_back_from_parquet_as_they_were(tmp_path: Path, prompt, completion, text) -> None:
    rows = [sft_row(prompt, completion, "a", 1), sft_row(text, text, "b", 2)]
    write_sft_rows(tmp_path / "rows.parquet", rows)
    assert read_sft_rows(tmp_path / "rows.parquet") == rows


@given(prompt=texts, chosen=texts, rejected=texts)
def test_the_row_id_does_not_depend_on_where_the_row_stood(prompt: str, chosen: str, rejected: str) -> None:
    assert (
        paired_row(prompt, chosen, rejected, "a.jsonl", 1).row_id
        == paired_row(prompt, chosen, rejected, "b.json", 9).row_id
    )


@given(fields=st.lists(texts, min_size=6, max_size=6))
def test_rows_with_different_content_have_different_ids(fields: list[str]) -> None:
    one, other = paired_row(*fields[:3], "f", 1), paired_row(*fields[3:], "f", 1)
    assert (one.row_id == other.row_id) == (fields[:3] == fields[3:])


def test_text_is_not_normalised_before_it_is_named() -> None:
    ids = {paired_row("p", chosen, "r", "f", 1).row_id for chosen in ("é", "e\u0301", "é ", " é")}
    assert len(ids) == 4


def test_a_pair_and_a_demonstration_and_both_labels_have_ids_of_their_own() -> None:
    ids = {
        paired_row("p", "c", "c2", "f", 1).row_id,
        unpaired_row("p", "c", True, "f", 1).row_id,
        unpaired_row("p", "c", False, "f", 1).row_id,
        sft_row("p", "c", "f", 1).row_id,
        sft_row(({"role": "user", "content": "p"},), ({"role": "assistant", "content": "c"},), "f", 1).row_id,
    }
    assert len(ids) == 5


def test_the_order_of_a_messages_keys_does_not_change_the_row_id() -> None:
    answer = ({"role": "assistant", "content": "a"},)
    one = sft_row(({"role": "user", "content": "q"},), answer, "f", 1)
    other = sft_row((json.loads('{"content": "q", "role": "user"}'),), answer, "f", 1)
    assert one.row_id == other.row_id


def test_many_rows_pass_through_in_order(tmp_path: Path) -> None:
    rows = [paired_row(f"p{number}", "c", "r", "f", number) for number in range(1, 3001)]
    write_rows(tmp_path / "rows.parquet", iter(rows))
    assert [row.source_row for row in read_rows(tmp_path / "rows.parquet")] == list(range(1, 3001))
