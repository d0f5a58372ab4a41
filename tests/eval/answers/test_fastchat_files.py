from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from eval.answers.files import model_name, parse_answers
from eval.grading.pairs import with_baseline
from eval.suites import ALPACA_EVAL, ARENA_HARD, HARMLESS, MT_BENCH, Item
from eval.suites.items import check_items
from eval.suites.rows import write_records

ALPACA = check_items(ALPACA_EVAL, enumerate([{"instruction": text, "output": f"b {text}"} for text in "aba"], 1), "f")


def parse(records: list[dict[str, Any]], items: list[Item]) -> dict[str, tuple[str, ...]]:
    return {one.id: one.turns for one in parse_answers(enumerate(records, start=1), "f", items)}


def test_alpaca_outputs_are_matched_by_instruction_and_one_that_stands_twice_by_its_order() -> None:
    outputs = [{"instruction": text, "output": f"o{n}", "generator": "g"} for n, text in enumerate("aab")]
    assert parse(outputs, ALPACA) == {"0": ("o0",), "2": ("o1",), "1": ("o2",)}
    with pytest.raises(BadInput, match="row 3, field 'instruction': no item"):
        parse([*outputs[:2], {"instruction": "a", "output": "o"}], ALPACA)


@pytest.mark.parametrize(
    "record",
    [
        {"id": "u1", "turns": ["text"]},
        {"question_id": "u1", "choices": [{"index": 0, "turns": ["text"]}]},
        {"question_id": "u1", "choices": [{"index": 0, "turns": [{"content": "text", "token_len": 1}]}]},
        {"uid": "u1", "model": "m", "messages": [{"role": "user", "content": "q"}, {"role": "assistant",
         "content": {"answer": "text"}}]},
        {"uid": "u1", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "text"}]},
    ],
)  # fmt: skip
def test_every_published_form_of_an_answer_is_read(record: dict[str, Any]) -> None:
    assert parse([record], [Item("u1", {"turns": ["q"]})]) == {"u1": ("text",)}


@pytest.mark.parametrize(
    "record",
    [
        {"uid": "u1", "messages": []},
        {"uid": "u1", "messages": [{"role": "assistant", "content": {"text": "t"}}]},
        {"question_id": "u1", "choices": [{"turns": [{"text": "t"}]}]},
        {"instruction": "a", "output": None},
    ],
)
def test_an_answer_without_a_text_is_named(record: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="row 1, field 'turns'"):
        parse([record], ALPACA)


def test_questions_of_both_versions_of_arena_hard_are_read() -> None:
    old = {"question_id": "x1", "category": "arena-hard-v0.1", "cluster": "c", "turns": [{"content": "hello"}]}
    new = {"uid": "x2", "category": "hard_prompt", "subcategory": "coding", "prompt": "hi"}
    items = check_items(ARENA_HARD, [(1, old), (2, new)], "f")
    assert [(item.id, item.fields["turns"]) for item in items] == [("x1", ["hello"]), ("x2", ["hi"])]
    for bad in ({"question_id": "x", "turns": [{"text": "t"}]}, {"question_id": "x", "turns": ["a", "b"]}):
        with pytest.raises(BadInput, match="row 1, field 'turns': expected 1 turns"):
            check_items(ARENA_HARD, [(1, bad)], "f")


def test_prompts_of_beavertails_and_hh_are_read_each_once() -> None:
    rows = [
        {"prompt": "how to a", "response": "r", "category": {"abuse": True}, "is_safe": False},
        {"prompt": "how to a", "response": "other", "category": {"abuse": True}, "is_safe": True},
        {"chosen": "\n\nHuman: how to b\n\nAssistant: no\n\nHuman: please\n\nAssistant: no", "rejected": "…"},
    ]
    items = check_items(HARMLESS, enumerate(rows, 1), "f")
    assert [(item.id, item.fields["turns"]) for item in items] == [("0", ["how to a"]), ("2", ["how to b"])]
    with pytest.raises(BadInput, match="field 'prompt': not a Harmlessness item: missing"):
        check_items(HARMLESS, [(1, {"chosen": "Hello"})], "f")
    with pytest.raises(BadInput, match="field 'prompt': not a Harmlessness item: expected str"):
        check_items(HARMLESS, [(1, {"prompt": ["a"]})], "f")


@pytest.mark.real_data
def test_every_hh_dialogue_opens_with_a_prompt(real_data: Path) -> None:
    from eval.suites.items import read_items

    items = read_items(HARMLESS, real_data / "hh_rlhf/harmless-base.test.jsonl.gz")
    assert 2000 < len(items) <= 2312
    assert all(item.fields["turns"][0].strip() and "\n\nAssistant:" not in item.fields["turns"][0] for item in items)


def test_the_baseline_stands_beside_the_item() -> None:
    own = with_baseline(ALPACA_EVAL, ALPACA, None, "f")
    assert [item.fields["baseline"] for item in own] == [["b a"], ["b b"], ["b a"]]
    rows = enumerate([{"instruction": text, "output": f"o{n}"} for n, text in enumerate("aba")], start=1)
    given = with_baseline(ALPACA_EVAL, ALPACA, rows, "f")
    assert [item.fields["baseline"] for item in given] == [["o0"], ["o1"], ["o2"]]
    more = [(1, {"instruction": "other", "output": "x"}), (2, {"instruction": "b", "output": "o"})]
    assert with_baseline(ALPACA_EVAL, ALPACA[1:2], more, "f")[0].fields["baseline"] == ["o"]
    with pytest.raises(BadInput, match="the baseline has no whole answer to item 1"):
        with_baseline(ALPACA_EVAL, ALPACA, [(1, {"instruction": "a", "output": "o"})], "f")
    with pytest.raises(BadInput, match="the baseline has no whole answer to item 0"):
        with_baseline(ALPACA_EVAL, [Item("0", {"instruction": "a", "turns": ["a"]})], None, "f")
    question = Item("81", {"turns": ["a", "b"]})
    with pytest.raises(BadInput, match="to item 81"):
        with_baseline(MT_BENCH, [question], [(1, {"id": 81, "turns": ["one"]})], "f")


def test_a_model_is_called_what_its_file_says(tmp_path: Path) -> None:
    for name, record, wanted in (
        ("a", {"model_id": "zephyr"}, "zephyr"),
        ("b", {"generator": "gpt4"}, "gpt4"),
        ("run-7", {"id": 1}, "run-7"),
    ):
        write_records(tmp_path / f"{name}.jsonl", [record])
        assert model_name(tmp_path / f"{name}.jsonl") == wanted
