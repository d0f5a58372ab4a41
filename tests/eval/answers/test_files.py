from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.errors import BadInput
from eval.answers.files import Response, match_responses, read_responses, write_responses
from eval.suites import Item


def test_responses_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = [Response("7", ("one", "zwei\n")), Response("8", (), "turn 1: prompt of 600 tokens + 16 new > 512")]
    write_responses(tmp_path / "r.jsonl", written)
    assert read_responses(tmp_path / "r.jsonl") == written


def test_log_likelihoods_and_token_counts_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = [
        Response("1", (), loglikelihoods=((-1.25, True), (-3.5, False))),
        Response("2", ("one", "two"), tokens=(3, 4)),
        Response("3", (), "context and continuation of 600 tokens > 512 + 1"),
    ]
    write_responses(tmp_path / "r.jsonl", written)
    assert read_responses(tmp_path / "r.jsonl") == written


@pytest.mark.parametrize(
    "value", [[], "x", [[-1.0]], [[-1.0, 0]], [[True, True]], [["-1", True]], [[float("nan"), True]]]
)
def test_malformed_log_likelihoods_are_named(tmp_path: Path, value: object) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps({"id": 1, "loglikelihoods": value}))
    with pytest.raises(BadInput, match="row 1, field 'loglikelihoods': response 1"):
        read_responses(tmp_path / "r.jsonl")


def test_texts_for_log_likelihoods_and_the_other_way_round_are_named() -> None:
    with pytest.raises(BadInput, match="field 'loglikelihoods': response 1: expected loglikelihoods"):
        match_responses([Item("1", {})], [Response("1", ("a",))], 0, "f")
    with pytest.raises(BadInput, match="field 'turns': response 1: expected turns"):
        match_responses([Item("1", {})], [Response("1", (), loglikelihoods=((-1.0, True),))], 1, "f")


def test_fastchat_answer_files_are_read(tmp_path: Path) -> None:
    record = {"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["a", "b"]}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n\n")
    assert read_responses(tmp_path / "a.jsonl") == [Response("81", ("a", "b"))]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": 1, "turns": ["again"]}', "row 2: id 1 appears twice"),
        ('{"id": 2, "turns": "text"}', "row 2, field 'turns': response 2"),
        ('{"id": 2, "turns": []}', "response 2: no turns"),
        ('{"turns": ["a"]}', "row 2, field 'id'"),
        ('{"id": 2, "turns": ["a"]', "row 2: not JSON"),
        ("[1]", "row 2: expected a JSON object"),
        ('{"question_id": 2, "choices": []}', "response 2"),
        (r'{"id": 2, "turns": ["a", "\ud83e"]}', r"row 2, field 'turns': text with U\+D83E"),
        (r'{"id": "\udc00", "turns": ["a"]}', "row 2, field 'id': text with"),
        ('\n\n{"id": 2, "turns": []}', "row 4, field 'turns'"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "r.jsonl").write_text(f'{{"id": 1, "turns": ["a"]}}\n{line}\n')
    with pytest.raises(BadInput, match=words):
        read_responses(tmp_path / "r.jsonl")


def test_text_that_is_not_utf8_is_named_by_its_row(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(b'{"id": 1, "turns": ["a"]}\n{"id": 2, "turns": ["\xff"]}\n')
    with pytest.raises(BadInput, match="row 2: not UTF-8"):
        read_responses(tmp_path / "r.jsonl")


def test_responses_are_laid_beside_their_items_and_missing_ones_listed() -> None:
    items = [Item("1", {}), Item("2", {}), Item("3", {})]
    matched, missing = match_responses(items, [Response("3", ("c",)), Response("1", ("a",))], 1, "f")
    assert [(item.id, response.turns) for item, response in matched] == [("1", ("a",)), ("3", ("c",))]
    assert missing == ["2"]


def test_a_response_to_no_item_or_with_too_few_turns_is_named() -> None:
    items = [Item("1", {})]
    told = "id 9 is not in the data file; expected is an item's row index in the data file, counted from 0, such as 1"
    with pytest.raises(BadInput, match=told):
        match_responses(items, [Response("9", ("a",))], 1, "f")
    with pytest.raises(BadInput, match="id 9 is not in the data file; expected is an item's key, such as 1"):
        match_responses(items, [Response("9", ("a",))], 1, "f", "key")
    with pytest.raises(BadInput, match="response 1: 1 of 2 turns"):
        match_responses(items, [Response("1", ("a",))], 2, "f")


def test_a_response_to_no_item_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"id": 1, "turns": ["a"]}\n\n{"id": 9, "turns": ["a"]}\n')
    with pytest.raises(BadInput, match="f, row 3, field 'id': id 9"):
        match_responses([Item("1", {})], read_responses(tmp_path / "r.jsonl"), 1, "f")
