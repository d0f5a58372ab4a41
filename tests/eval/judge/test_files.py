from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.errors import BadInput
from eval.judge.files import Selection, read_judgments, write_judgments
from eval.judge.judgment import Judgment
from eval.suites.rows import read_records


@pytest.mark.real_data
def test_stored_judgments_parse_to_the_scores_stored_beside_them(real_data: Path) -> None:
    path = real_data / "mt_bench/judgments_mistral-orpo-capybara.jsonl"
    assert [judgment.score for judgment in read_judgments(path)] == [record["score"] for record in read_records(path)]


def test_judgments_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = [
        Judgment("81", 1, "gpt-4", "single-v1", "q", "[[5]]", "m"),
        Judgment("81", 2, "gpt-4", "p", "q", "?", "m"),
    ]
    write_judgments(tmp_path / "j.jsonl", written)
    assert read_judgments(tmp_path / "j.jsonl") == written
    assert [record["score"] for record in read_records(tmp_path / "j.jsonl")] == [5.0, -1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "row 2: question 1 turn 1 is judged twice, first in row 1"),
        ({"turn": 2, "model": "other"}, "several models: m, other; name one of them with --model"),
        ({"model": "other"}, "several models: m, other; name one of them with --model"),
        ({"turn": 2, "judge": ["k", "p"]}, "several judges: j, k; name one of them with --judge"),
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


def test_one_model_and_one_judge_are_selected_from_a_file_of_several(tmp_path: Path) -> None:
    written = [
        Judgment("1", 1, judge, "single-v1", "q", f"[[{rating}]]", model)
        for rating, (judge, model) in enumerate([("j", "a"), ("j", "b"), ("k", "a")], start=1)
    ]
    write_judgments(tmp_path / "j.jsonl", written)
    assert [one.score for one in read_judgments(tmp_path / "j.jsonl", Selection("a", "k"))] == [3.0]
    with pytest.raises(BadInput, match="no judgment of the model 'c'; the file has a, b"):
        read_judgments(tmp_path / "j.jsonl", Selection("c"))


def pair(game: int, text: str, question: str = "a1", turn: int = 1) -> Judgment:
    return Judgment(question, turn, "gpt-4", "pair-v2", f"game {game}", text, "ours", game, "theirs")


def test_the_games_of_a_pair_stand_on_one_line_in_fastchat_s_form(tmp_path: Path) -> None:
    written = [
        pair(1, "[[A]]"),
        pair(2, "[[A]]"),
        pair(1, "[[C]]", turn=2),
        pair(2, "hm", turn=2),
        pair(2, "[[A]]", "b"),
    ]
    write_judgments(tmp_path / "j.jsonl", written)
    assert read_judgments(tmp_path / "j.jsonl") == written
    first, other, third = read_records(tmp_path / "j.jsonl")
    assert first == {
        "question_id": "a1",
        "model_1": "ours",
        "model_2": "theirs",
        "judge": ["gpt-4", "pair-v2"],
        "turn": 1,
        "g1_winner": "model_1",
        "g1_user_prompt": "game 1",
        "g1_judgment": "[[A]]",
        "g2_winner": "model_2",
        "g2_user_prompt": "game 2",
        "g2_judgment": "[[A]]",
    }
    assert (other["g1_winner"], other["g2_winner"]) == ("tie", "error")
    assert (third["g1_winner"], third["g1_judgment"], third["g2_winner"]) == ("error", None, "model_2")


def test_a_pair_that_stands_twice_or_holds_no_text_is_named(tmp_path: Path) -> None:
    write_judgments(tmp_path / "j.jsonl", [pair(1, "[[A]]")])
    line = (tmp_path / "j.jsonl").read_text()
    (tmp_path / "twice.jsonl").write_text(line * 2)
    with pytest.raises(BadInput, match="row 2: question a1 turn 1 is judged twice"):
        read_judgments(tmp_path / "twice.jsonl")
    (tmp_path / "odd.jsonl").write_text(line.replace('"g2_judgment": null', '"g2_judgment": 7'))
    with pytest.raises(BadInput, match="row 1, field 'g2_judgment'"):
        read_judgments(tmp_path / "odd.jsonl")
