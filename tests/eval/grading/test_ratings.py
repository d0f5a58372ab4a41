from __future__ import annotations

from pathlib import Path

import pytest

from alignment.errors import BadInput
from eval.answers.files import Response, read_responses
from eval.grading import RATINGS
from eval.judge.files import read_judgments
from eval.judge.prompts import default_prompts, parse_prompts, reference_turns
from eval.suites import MT_BENCH, Item
from eval.suites.items import read_items
from eval.suites.rows import read_rows


@pytest.mark.real_data
def test_published_prompts_are_filled_as_in_the_published_judgments(real_data: Path) -> None:
    folder = real_data / "mt_bench"
    prompts = parse_prompts(read_rows(folder / "judge_prompts.jsonl"), "f")
    references = reference_turns(read_rows(folder / "reference_answer/gpt-4.jsonl"), "f")
    answers = {r.id: r for r in read_responses(folder / "answers_mistral-orpo-capybara.jsonl")}
    judged = {(j.question_id, j.turn): j for j in read_judgments(folder / "judgments_mistral-orpo-capybara.jsonl")}
    for item in read_items(MT_BENCH, folder / "question.jsonl"):
        for question in RATINGS.questions(item, answers[item.id], prompts, references):
            published = judged[item.id, question.turn]
            assert question.prompt_name == published.prompt_name
            assert question.user == published.user_prompt


def test_our_own_prompts_show_question_answer_and_reference() -> None:
    item = Item("101", {"category": "math", "turns": ["q-one {x}", "q-two"]})
    response = Response("101", ("a-one", "a-two"))
    plain = RATINGS.questions(item, response, default_prompts(), {})
    referred = RATINGS.questions(item, response, default_prompts(), {"101": ("r-one", "r-two")})
    assert [q.prompt_name for q in plain] == ["single-v1", "single-v1-multi-turn"]
    assert [q.prompt_name for q in referred] == ["single-math-v1", "single-math-v1-multi-turn"]
    assert "q-one {x}" in plain[0].user and "a-one" in plain[0].user and "q-two" not in plain[0].user
    assert all(text in referred[1].user for text in ("q-one {x}", "q-two", "a-one", "a-two", "r-one", "r-two"))
    for question in plain + referred:
        whole = " ".join(message["content"] for message in question.messages())
        assert "Rating: [[5]]" in whole and [m["role"] for m in question.messages()] == ["system", "user"]


def test_a_writing_question_is_never_judged_against_a_reference() -> None:
    item = Item("81", {"category": "writing", "turns": ["q", "q"]})
    (first, _) = RATINGS.questions(item, Response("81", ("a", "a")), default_prompts(), {"81": ("r", "r")})
    assert first.prompt_name == "single-v1"


def test_prompts_and_references_that_do_not_fit_are_named() -> None:
    with pytest.raises(BadInput, match="no judge prompt named 'single-v1'"):
        parse_prompts([(1, {"name": "x", "system_prompt": "", "prompt_template": ""})], "f", RATINGS.prompts)
    with pytest.raises(BadInput, match="row 1, field 'prompt_template'"):
        parse_prompts([(1, {"name": "x", "system_prompt": ""})], "f")
    with pytest.raises(BadInput, match="row 1: not a FastChat answer"):
        reference_turns([(1, {"question_id": 1, "choices": []})], "f")
    prompts = default_prompts()
    odd = {name: type(p)(p.name, p.system, "{nothing}") for name, p in prompts.items()}
    with pytest.raises(BadInput, match="'single-v1' cannot be filled for question 1"):
        RATINGS.questions(Item("1", {"category": "stem", "turns": ["q", "q"]}), Response("1", ("a", "a")), odd, {})
