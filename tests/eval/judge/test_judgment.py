from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.errors import BadInput
from eval.jsonl import read_records
from eval.judge.judgment import Judgment, parse_rating, read_judgments, write_judgments


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Good. Rating: [[8]]", 8.0),
        ("[[7.5]] rather than [[2]]", 7.5),
        ("The best I can say is [6].", 6.0),
        ("See [3], but Rating: [[9]]", 9.0),
        ("Rating: 7", None),
        ("[[A]]", None),
        ("[[11]]", None),
        ("[[0]]", None),
        ("", None),
    ],
)
def test_ratings_are_read_as_fastchat_reads_them_and_only_from_1_to_10(text: str, rating: float | None) -> None:
    assert parse_rating(text) == rating


@pytest.mark.real_data
def test_stored_judgments_parse_to_the_scores_stored_beside_them(real_data: Path) -> None:
    path = real_data / "mt_bench/judgments_mistral-orpo-capybara.jsonl"
    assert [judgment.score for judgment in read_judgments(path)] == [record["score"] for record in read_records(path)]


def test_judgments_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = [Judgment("81", 1, "gpt-4", "single-v1", "q", "[[5]]", "m"), Judgment("81", 2, "j", "p", "q", "?", "m")]
    write_judgments(tmp_path / "j.jsonl", written)
    assert read_judgments(tmp_path / "j.jsonl") == written
    assert [record["score"] for record in read_records(tmp_path / "j.jsonl")] == [5.0, -1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "row 2: question 1 turn 1 is judged twice"),
        ({"turn": 2, "model": "other"}, "several models: m, other"),
        ({"turn": None}, "field 'turn'"),
        ({"turn": 2, "judgment": None}, "field 'judgment'"),
        ({"turn": 2, "judgment": "\ud800"}, "row 2, field 'judgment': text with"),
    ],
)
def test_judgments_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, object], words: str) -> None:
    good = {"question_id": 1, "turn": 1, "judgment": "[[5]]", "judge": ["j", "p"], "model": "m"}
    (tmp_path / "j.jsonl").write_text("\n".join(json.dumps(record) for record in (good, good | change)))
    with pytest.raises(BadInput, match=words):
        read_judgments(tmp_path / "j.jsonl")
