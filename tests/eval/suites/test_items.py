from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from alignment.data.files import pin_file
from alignment.errors import BadInput
from eval.suites import GSM8K, IFEVAL, MT_BENCH, Item, SuiteSpec, suite_named
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


@pytest.mark.parametrize("suite", [GSM8K, IFEVAL, MT_BENCH], ids=lambda suite: suite.name)
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
        ({"question_id": 0, "category": "a", "turns": ["one", "two"]}, "id 0 appears twice"),
        ({"question_id": "x", "category": "a", "turns": ["one", "two"]}, "field 'question_id'.*expected int"),
    ],
)
def test_an_item_of_another_form_is_named(record: dict[str, object], words: str) -> None:
    good = {"question_id": 0, "category": "a", "turns": ["one", "two"]}
    with pytest.raises(BadInput, match=words):
        check_items(MT_BENCH, enumerate([good, record], start=1), "f")


GOOD = {"key": 7, "prompt": "p", "instruction_id_list": ["length_constraints:number_words"]}
GOOD |= {"kwargs": [{"relation": "at least", "num_words": 3, "num_highlights": None}]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"instruction_id_list": [], "kwargs": []}, "field 'instruction_id_list': item 8: no instructions"),
        ({"instruction_id_list": ["a:b"]}, "field 'instruction_id_list': item 8: lm-eval has no instruction 'a:b'"),
        ({"instruction_id_list": [["a"]]}, "no instruction"),
        ({"kwargs": []}, "field 'kwargs': item 8: 0 for 1 instructions"),
        ({"kwargs": [3]}, "field 'kwargs': item 8, length_constraints:number_words: expected an object"),
        ({"kwargs": [{"num_words": "x"}]}, "item 8, length_constraints:number_words: num_words: expected a number"),
        ({"kwargs": [{"relation": "around"}]}, "supported relation"),
        ({"kwargs": [{"letter": "x"}]}, "unexpected keyword argument 'letter'"),
        (
            {"instruction_id_list": ["startend:end_checker"], "kwargs": [{"end_phrase": 5}]},
            "end_phrase: expected a text",
        ),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": [1]}]}, "keywords: expected a list"),
        ({"prompt": "\ud83e"}, r"row 2, field 'prompt': text with U\+D83E"),
    ],
)
def test_an_ifeval_item_that_cannot_be_scored_is_named(change: dict[str, object], words: str) -> None:
    assert [item.id for item in check_items(IFEVAL, [(1, GOOD)], "f")] == ["7"]
    with pytest.raises(BadInput, match=words) as found:
        check_items(IFEVAL, [(1, GOOD), (2, GOOD | {"key": 8} | change)], "f")
    assert (found.value.file, found.value.row) == ("f", 2)


def test_checking_instructions_leaves_the_random_numbers_alone() -> None:
    state = random.getstate()
    check_items(IFEVAL, [(1, GOOD | {"kwargs": [{}]})], "f")
    assert random.getstate() == state


def test_errors_name_source_lines_and_gsm8k_ids_count_items(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text('\n{"question": "q", "answer": "a"}\n\n{"question": "q", "answer": "a"}\n')
    assert [item.id for item in read_items(GSM8K, path)] == ["0", "1"]
    path.write_text('\n{"question": "q", "answer": "a"}\n\n{"question": "q"}\n')
    with pytest.raises(BadInput, match="row 4, field 'answer'"):
        read_items(GSM8K, path)


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
    with pytest.raises(BadInput, match=r"no suite 'gsm9k'.*a section of their own are gsm8k, ifeval, ifbench"):
        suite_named("gsm9k")


def test_what_only_scoring_reads_is_left_out_for_answering(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text("{}")
    spec = SuiteSpec(name="mt_bench", embedded="micro", max_new_tokens=8)
    judged = spec.model_copy(update={"reference_answers": pin_file(str(path)), "judge_prompts": pin_file(str(path))})
    assert judged.digest() != spec.digest()
    assert judged.for_answering() == spec
