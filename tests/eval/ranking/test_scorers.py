"""Scores of sampled answers, and the reasons why an answer has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.generation import openai_client
from alignment.recipe import Judge
from eval.ranking.scorers import JudgeScorer, Scored, exact, instructions, result_of, rubric


def answer(text: str, name: str = "p/0", **about: Any) -> Scored:
    return Scored(name, name.partition("/")[0], ({"role": "user", "content": "q"},), about, text)


def test_a_rubric_rates_by_the_share_of_checks_that_pass() -> None:
    checks = [{"kind": "contains", "value": "fox"}, {"kind": "ends_with", "value": "."}]
    assert rubric([answer("a fox.", rubric=checks), answer("a fox", rubric=checks), answer("x")]) == [
        10.0,
        5.5,
        "the prompt has no rubric",
    ]
    assert rubric([answer("x", rubric=[{"kind": "magic", "value": 1}])]) == [
        "the prompt's rubric holds what is no check"
    ]


def test_exact_results_are_compared_as_numbers_or_as_formulas() -> None:
    told = "It is 3 + 4 = 7.\n#### 7"
    assert exact([answer("so 7", answer=told), answer("7.0", answer=told), answer("8", answer=told)]) == [1.0, 1.0, 0.0]
    assert exact([answer(r"\boxed{\frac12}", answer=r"\frac{1}{2}"), answer("no", answer="x")]) == [1.0, 0.0]
    assert exact([answer("7")]) == ["the prompt has no answer to compare with"]
    assert result_of("1,234 in all") == "1,234" and result_of("none") is None


def test_instructions_are_checked_as_in_ifeval() -> None:
    about = {"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]}
    made = instructions([answer('"a b"', **about), answer("a b", **about), answer("a, b", **about), answer("x")])
    assert made == [1.0, 0.5, 0.0, "the prompt has no instructions"]


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "FIRST_DELAY", 1e-3)


def settings(server: Any, **more: Any) -> Judge:
    given = {"model": "grader", "base_url": server.url, "api_key_env": "TEST_JUDGE_KEY", "retries": 0, "in_flight": 1}
    return Judge.model_validate({"kind": "openai"} | given | more)


def test_a_judge_rates_each_answer_once_even_over_an_interruption(server: Any, tmp_path: Path) -> None:
    answers = [answer(f"text {k}", f"p/{k}") for k in range(3)]
    scorer = JudgeScorer(settings(server), tmp_path / "j.jsonl", pairwise=False)
    found = scorer(answers)
    assert all(score in (4, 5, 6) for score in found) and scorer.bill["judgments"] == 3
    assert scorer(answers) == found and server.requests == 3


def test_a_budget_that_ends_in_the_middle_leaves_the_rest_without_a_score(server: Any, tmp_path: Path) -> None:
    answers = [answer(f"text {k}", f"p/{k}") for k in range(4)]
    server.usage = {"prompt_tokens": 1400, "completion_tokens": 5, "total_tokens": 1405}
    scorer = JudgeScorer(settings(server, budget_tokens=3000, max_tokens=100), tmp_path / "j.jsonl", pairwise=False)
    found = scorer(answers)
    left = [score for score in found if isinstance(score, str)]
    assert 0 < len(left) < 4 and set(left) == {"the judge's budget of 3000 tokens ended"}


def test_a_judge_must_be_an_endpoint(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="by a judge of kind openai"):
        JudgeScorer(Judge(kind="rubric"), tmp_path / "j.jsonl", pairwise=False)([answer("a")])
