"""The SFT dataset: every known form, every record accounted for, a sample that does not depend on order."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.data.demonstrations import normalise
from alignment.data.files import pin_file
from alignment.data.rows import SftRow, is_held_out, read_sft_rows, sft_row
from alignment.errors import BadInput
from alignment.stages import SourceFile, execute
from alignment.stages.sft_dataset import STAGE, SftDatasetRequest, sample
from alignment.store import Commit, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def u(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def a(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def save(path: Path, records: list[Any]) -> SourceFile:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return pin_file(str(path))


def build(store: Store, **request: Any) -> tuple[Commit, Path]:
    request = {"seed": 0, "max_rows": None, "held_out_fraction": 0.0, **request}
    commit = execute(STAGE, SftDatasetRequest(**request), store)
    return commit, store.fetch(commit.artifact)


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "q", "input": "", "output": "x"},
        {"instruction": "q", "output": "x"},
        {"instruction": "", "input": "q", "output": "x"},
        {"question": "q", "answer": "x"},
        {"messages": [u("q"), a("x")]},
        {"messages": [u("q"), a("x")], "prompt": "q", "prompt_id": "1"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}]},
        {"prompt": [u("q")], "completion": [a("x")]},
        {"prompt": "q", "completion": [a("x")]},
        {"prompt": [u("q")], "completion": "x", "messages": None},
    ],
)
def test_one_demonstration_is_one_row_in_whatever_form_it_comes(record: dict[str, Any]) -> None:
    assert normalise(record, "f", 1) == sft_row((u("q"),), (a("x"),), "f", 1)


def test_an_alpaca_input_follows_its_instruction_after_a_blank_line() -> None:
    row = normalise({"instruction": "Add.", "input": "1 2\n", "output": "3"}, "f", 1)
    assert isinstance(row, SftRow)
    assert row.prompt == (u("Add.\n\n1 2\n"),)


def test_plain_strings_stay_plain_text() -> None:
    assert normalise({"prompt": " q ", "completion": " x\n"}, "f", 1) == sft_row(" q ", " x\n", "f", 1)


def test_what_is_learnt_of_a_conversation_is_its_last_turn() -> None:
    turns = [{"role": "system", "content": "s"}, u("q"), a("x"), u("q2"), a("y")]
    row = normalise({"messages": turns}, "f", 1)
    assert isinstance(row, SftRow)
    assert (row.prompt, row.completion) == (tuple(turns[:-1]), (a("y"),))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (7, "not an object"),
        ({"text": "x"}, "unknown form"),
        ({"prompt": "p"}, "missing field completion"),
        ({"instruction": "p"}, "missing field output"),
        ({"question": "p"}, "missing field answer"),
        ({"completion": "p"}, "missing field prompt"),
        ({"question": "p", "answer": " "}, "empty completion"),
        ({"instruction": " ", "output": "x"}, "empty prompt"),
        ({"instruction": 3, "output": "x"}, "instruction is not text"),
        ({"messages": [u("q"), a("x"), u("bye")]}, "wrong roles"),
        ({"messages": "q"}, "messages is not a list of messages"),
        ({"messages": [a("x")]}, "empty prompt"),
    ],
)
def test_a_record_that_is_no_demonstration_has_a_reason(record: Any, reason: str) -> None:
    assert normalise(record, "f", 1) == reason


def test_every_record_is_trained_held_out_or_in_quarantine(tmp_path: Path, store: Store) -> None:
    records: list[Any] = [{"question": f"q{number}", "answer": "x"} for number in range(50)]
    file = save(tmp_path / "a.jsonl", [*records, records[4], {"text": "x"}])
    commit, folder = build(store, files=[file], held_out_fraction=0.3)
    train, held_out = (read_sft_rows(folder / name) for name in ("train.parquet", "held_out.parquet"))
    assert len(train) + len(held_out) == 50 == commit.summary["rows"]
    assert all(is_held_out(row.prompt, row.form, 0.3) for row in held_out)
    assert not any(is_held_out(row.prompt, row.form, 0.3) for row in train)
    quarantined = pq.read_table(folder / "quarantine.parquet").to_pylist()
    assert [(entry["source_row"], entry["reason"]) for entry in quarantined] == [
        (51, "duplicate of row 5"),
        (52, "unknown form"),
    ]
    assert commit.summary["reasons"] == {"duplicate": 1, "unknown form": 1}
    assert commit.summary["source_rows"] == 52


def test_the_order_of_files_and_rows_changes_nothing_but_where_rows_came_from(tmp_path: Path, store: Store) -> None:
    records = [{"question": f"q{number}", "answer": "x"} for number in range(30)]
    one = [save(tmp_path / "a.jsonl", records[:10]), save(tmp_path / "b.jsonl", records[10:])]
    other = [save(tmp_path / "c.jsonl", records[::-1])]
    (first, folder), (second, other_folder) = (build(store, files=files, max_rows=12) for files in (one, other))
    assert first.digest == second.digest
    ids = [[row.row_id for row in read_sft_rows(path / "train.parquet")] for path in (folder, other_folder)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 12 == first.summary["rows"]
    assert first.summary["not_sampled"] == 18


rows = st.lists(st.integers(0, 200), unique=True, max_size=30).map(
    lambda numbers: [sft_row(f"q{number}", "x", "f", number) for number in numbers]
)


@given(rows=rows, size=st.integers(1, 20), seed=st.integers(0, 3))
def test_a_sample_depends_on_the_seed_and_the_rows_but_not_on_their_order(
    rows: list[SftRow], size: int, seed: int
) -> None:
    drawn = sample(rows, seed, size)
    assert drawn == sample(random.Random(1).sample(rows, len(rows)), seed, size)
    assert len(drawn) == min(size, len(rows))
    assert set(drawn) <= set(sample(rows, seed, size + 1)) <= set(rows)


def test_another_seed_draws_another_sample() -> None:
    rows = [sft_row(f"q{number}", "x", "f", number) for number in range(100)]
    assert sample(rows, 0, 20) != sample(rows, 1, 20)


def test_the_embedded_demonstrations_depend_on_the_seed(store: Store) -> None:
    commits = [build(store, embedded="micro", seed=seed, max_rows=200)[0] for seed in (1, 2)]
    assert commits[0].digest != commits[1].digest
    assert all(commit.summary["rows"] == 200 and not commit.summary["quarantined"] for commit in commits)


def test_nothing_to_train_on_is_bad_input(tmp_path: Path, store: Store) -> None:
    with pytest.raises(BadInput, match=r"a\.jsonl: no row to fine-tune on.*unknown form \(2 of 2\)"):
        build(store, files=[save(tmp_path / "a.jsonl", [{}, {}])])


def test_a_request_has_one_source() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        SftDatasetRequest(seed=0, max_rows=None, held_out_fraction=0)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "source_rows"),
    [("demo/alpaca_en_demo.json", 999), ("gsm8k/train.jsonl", 7473), ("gsm8k/test.jsonl", 1319)],
)
def test_the_real_files_are_all_accounted_for(store: Store, real_data: Path, name: str, source_rows: int) -> None:
    commit, folder = build(store, files=[pin_file(str(real_data / name))], held_out_fraction=0.02)
    summary = commit.summary
    assert summary["source_rows"] == source_rows == summary["rows"] + summary["quarantined"]
    assert summary["train"] == pq.read_metadata(folder / "train.parquet").num_rows
    assert summary["held_out"] == pq.read_metadata(folder / "held_out.parquet").num_rows > 0
    assert summary["rows"] > 0.98 * source_rows


@pytest.mark.real_data
def test_real_alpaca_rows_say_what_their_records_say(store: Store, real_data: Path) -> None:
    records = json.loads((real_data / "demo/alpaca_en_demo.json").read_text(encoding="utf-8"))
    _, folder = build(store, files=[pin_file(str(real_data / "demo/alpaca_en_demo.json"))])
    for row in read_sft_rows(folder / "train.parquet"):
        record = records[row.source_row - 1]
        asked = record["instruction"] + (f"\n\n{record['input']}" if record["input"] else "")
        assert (row.form, row.prompt, row.completion) == ("chat", (u(asked),), (a(record["output"]),))
