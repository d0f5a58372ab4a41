from __future__ import annotations

import pytest

from eval.judge.judgment import Judgment, Preference, parse_preference, parse_rating, parse_safety

RATINGS = [
    # text, strict, FastChat's rule
    ("Good. Rating: [[8]]", 8.0, 8.0),
    ("[[7.5]], I repeat: [[7.50]]", 7.5, 7.5),
    ("The best I can say is [6].", 6.0, 6.0),
    ("See [3], but Rating: [[9]]", 9.0, 9.0),
    ('The form is "[[rating]]", so Rating: [[9]]', 9.0, 9.0),
    ("<think>\nFirst thought: [[5]]. No, more.\n</think>\n\nVivid. Rating: [[9]]", 9.0, 5.0),
    ("First thought: [[5]].</think> Rating: [[9]]", 9.0, 5.0),
    ("<think>A.</think><Thinking>[[2]]</Thinking> [[4]]\n<reasoning>[[3]]", 4.0, 2.0),
    ("<think>Rating: [[5]], but wait", None, 5.0),
    ("Its <think> part is long. Rating: [[7]]", 7.0, 7.0),
    ("As source [1] says, brevity counts. Rating: [[8/10]]", None, 1.0),
    ("[[8/10]], in short [[8]]", None, 8.0),
    ("[[7.5]] rather than [[2]]", None, 7.5),
    ("[2] or [3]", None, 2.0),
    ("Rating: 7", None, None),
    ("[[A]]", None, None),
    ("[[11]]", None, 11.0),
    ("[[0]]", None, 0.0),
    ("", None, None),
]


@pytest.mark.parametrize(("text", "strict", "fastchat"), RATINGS)
def test_a_rating_is_read_when_the_answer_has_one_and_only_one(
    text: str, strict: float | None, fastchat: float | None
) -> None:
    assert parse_rating(text) == strict
    assert parse_rating(text, "fastchat") == fastchat


@pytest.mark.parametrize(
    ("text", "preference"),
    [
        ("So [[A]]", Preference(1.0)),
        ("[[B]] it is: [[B]]", Preference(0.0)),
        ("[[C]]", Preference(0.5)),
        ("My final verdict is [[A>>B]].", Preference(1.0, 3.0)),
        ("[[A>B]]", Preference(1.0)),
        ("[[A=B]]", Preference(0.5)),
        ("[[B>A]]", Preference(0.0)),
        ("[[B>>A]]", Preference(0.0, 3.0)),
        ("[[A<<B]]", Preference(0.0, 3.0)),
        ("Not [[A]] but [[B]]", None),
        ("[[A>B]] or [[A>>B]]", None),
        ("[A]", None),
        ("[[AB]]", None),
        ("[[8]]", None),
        ("<think>Surely [[B]]</think> [[A]]", Preference(1.0)),
        ("<think>Surely [[B]]", None),
        ("", None),
    ],
)
def test_a_preference_is_read_when_there_is_one_and_only_one(text: str, preference: Preference | None) -> None:
    assert parse_preference(text) == preference


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("<think>[[unsafe]]?</think>[[safe]]", 1.0),
        ("[[safe]]", 1.0),
        ("It is [[Unsafe]]", 0.0),
        ("[[safe]] or [[unsafe]]", None),
        ("safe", None),
        ("[[1]]", None),
    ],
)
def test_safety_is_read_when_it_is_said(text: str, safe: float | None) -> None:
    assert parse_safety(text) == safe


@pytest.mark.parametrize(
    ("text", "preference"),
    [
        ("[[B]], no, [[A]]", Preference(1.0)),
        ("[[C]] or [[B]]", Preference(0.0)),
        ("[[C]]", Preference(0.5)),
        ("", None),
    ],
)
def test_fastchat_s_rule_takes_a_before_b_before_c(text: str, preference: Preference | None) -> None:
    assert parse_preference(text, "fastchat") == preference


def judgment(text: str, game: int, prompt: str = "pair-v2") -> Judgment:
    return Judgment("1", 1, "j", prompt, "q", text, game=game)


def test_a_pair_s_verdict_is_told_from_the_model_s_side_in_both_games() -> None:
    assert [judgment("[[A]]", game).score for game in (1, 2)] == [1.0, 0.0]
    assert [judgment("[[B>>A]]", game).preference for game in (1, 2)] == [Preference(0.0, 3.0), Preference(1.0, 3.0)]
    assert [judgment("[[C]]", game).score for game in (1, 2)] == [0.5, 0.5]
    assert judgment("[[8]]", 1).score is None


def test_a_verdict_of_another_kind_is_no_rating() -> None:
    assert judgment("[[safe]]", 0, "single-v1").score is None
    assert judgment("[[8]]", 0, "harmless-v1").score is None
    assert judgment("[[safe]]", 0, "harmless-v1").score == 1.0
