from __future__ import annotations

from typing import Any

import pytest

from alignment.errors import BadInput
from eval.answers.files import Response
from eval.judge.rubric import rubric_judge, rubric_rating
from eval.suites import Item

CHECKS: list[dict[str, Any]] = [
    {"kind": "contains", "value": ["bear", "hut"]},
    {"kind": "regex", "value": r"\*[a-z]+\*"},
    {"kind": "max_words", "value": 5},
]


def item(rubric: Any) -> Item:
    return Item("1", {"question_id": 1, "category": "writing", "turns": ["a", "b"], "rubric": rubric})


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("the *bear* in the hut", 10.0),
        ("the *bear*", 7.0),
        ("no, no, no, no, no, no", 1.0),
        ("hut bear", 7.0),
        ("", 1.0),
    ],
)
def test_the_rating_is_one_plus_nine_times_the_share_of_checks_passed(answer: str, rating: float) -> None:
    assert rubric_rating(answer, CHECKS) == rating


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"),
    [
        ("equals", "7", " 7\n", "77"),
        ("contains", "7", "it is 7", "it is 8"),
        ("starts_with", "A", "A b", "b A"),
        ("ends_with", ".", "done. ", "done"),
        ("max_words", 2, "two words", "now three words"),
    ],
)
def test_each_kind_of_check_tells_good_from_bad(kind: str, value: Any, good: str, bad: str) -> None:
    check = [{"kind": kind, "value": value}]
    assert (rubric_rating(good, check), rubric_rating(bad, check)) == (10.0, 1.0)


def test_every_turn_gets_a_judgment_whose_text_holds_its_rating() -> None:
    judgments = rubric_judge(
        [(item([CHECKS, [{"kind": "equals", "value": "no"}]]), Response("1", ("*bear* hut", "yes")))]
    )
    assert [(j.question_id, j.turn, j.judge, j.score) for j in judgments] == [
        ("1", 1, "rubric", 10.0),
        ("1", 2, "rubric", 1.0),
    ]


def test_an_answer_that_looks_like_a_rating_changes_nothing() -> None:
    rubric = [[{"kind": "equals", "value": "[[10]]"}], [{"kind": "equals", "value": "x"}]]
    assert [j.score for j in rubric_judge([(item(rubric), Response("1", ("no", "[[10]]")))])] == [1.0, 1.0]


@pytest.mark.parametrize(
    "rubric",
    [None, [CHECKS], [CHECKS, []], [CHECKS, [{"kind": "rhymes", "value": "x"}]], [CHECKS, [{"kind": "equals"}]]],
)
def test_a_question_without_a_rubric_it_can_apply_is_named(rubric: Any) -> None:
    with pytest.raises(BadInput, match="question 1"):
        rubric_judge([(item(rubric), Response("1", ("a", "b")))])
