from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.errors import BadInput
from alignment.sources import pin_file
from eval.suites import GSM8K, IFEVAL, MT_BENCH, SUITES, Item, SuiteSpec, suite_named
from eval.suites.items import check_items, load_items, read_items, sample_positions

ITEMS = [Item(str(index), {}) for index in range(200)]


def test_a_limit_takes_a_sample_that_its_seed_decides() -> None:
    first = sample_positions(ITEMS, 40, seed=1)
    assert first == sample_positions(ITEMS, 40, seed=1)
    assert first == sorted(set(first)) and len(first) == 40
    assert first != sample_positions(ITEMS, 40, seed=2)
    assert sample_positions(ITEMS, None, seed=1) == sample_positions(ITEMS, 500, seed=1) == list(range(200))


def test_a_larger_limit_keeps_the_items_of_a_smaller_one() -> None:
    assert set(sample_positions(ITEMS, 10, seed=5)) <= set(sample_positions(ITEMS, 60, seed=5))


def test_an_items_luck_does_not_depend_on_the_other_items() -> None:
    kept = {ITEMS[position].id for position in sample_positions(ITEMS, 50, seed=5)}
    half = ITEMS[::2]
    kept_of_half = {half[position].id for position in sample_positions(half, 50, seed=5)}
    assert kept & {item.id for item in half} <= kept_of_half


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_the_embedded_items_have_the_published_form(suite) -> None:  # type: ignore[no-untyped-def]
    items = load_items(suite, SuiteSpec(name=suite.name, embedded="micro", max_new_tokens=8), seed=0)
    assert len(items) >= 80
    assert items == load_items(suite, SuiteSpec(name=suite.name, embedded="micro", max_new_tokens=8), seed=0)


@pytest.mark.real_data
def test_the_published_files_are_read_with_their_own_ids(real_data: Path) -> None:
    assert [item.id for item in read_items(GSM8K, real_data / "gsm8k/test.jsonl")][:2] == ["0", "1"]
    assert len(read_items(IFEVAL, real_data / "ifeval/input_data.jsonl")) == 541
    assert next(item.id for item in read_items(MT_BENCH, real_data / "mt_bench/question.jsonl")) == "81"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"question_id": 1, "category": "a"}, "row 2, field 'turns': not a MT-Bench item: missing"),
        ({"question_id": 1, "category": "a", "turns": ["one"]}, "expected 2 turns"),
        ({"question_id": 0, "category": "a", "turns": ["one", "two"]}, "id 0 stands twice"),
        ({"question_id": "x", "category": "a", "turns": ["one", "two"]}, "field 'question_id'.*expected int"),
    ],
)
def test_an_item_of_another_form_is_named(record: dict[str, object], words: str) -> None:
    good = {"question_id": 0, "category": "a", "turns": ["one", "two"]}
    with pytest.raises(BadInput, match=words):
        check_items(MT_BENCH, enumerate([good, record], start=1), "f")


def test_a_data_file_that_changed_since_it_was_pinned_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "#### 1"}))
    spec = SuiteSpec(name="gsm8k", data=pin_file(str(path)), max_new_tokens=8)
    assert len(load_items(GSM8K, spec, seed=0)) == 1
    path.write_text(json.dumps({"question": "q", "answer": "#### 2"}))
    with pytest.raises(BadInput, match="has changed"):
        load_items(GSM8K, spec, seed=0)


def test_a_suite_without_items_or_of_an_unknown_name_is_named() -> None:
    with pytest.raises(BadInput, match="gsm8k needs either a data file or embedded items"):
        load_items(GSM8K, SuiteSpec(name="gsm8k", max_new_tokens=8), seed=0)
    with pytest.raises(BadInput, match="no suite 'mmlu'; there are gsm8k, ifeval, mt_bench"):
        suite_named("mmlu")


def test_what_only_scoring_reads_is_left_out_for_answering(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text("{}")
    spec = SuiteSpec(name="mt_bench", embedded="micro", max_new_tokens=8)
    judged = spec.model_copy(update={"reference_answers": pin_file(str(path)), "judge_prompts": pin_file(str(path))})
    assert judged.digest() != spec.digest()
    assert judged.for_answering() == spec
