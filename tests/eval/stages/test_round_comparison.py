"""A round beside the round before: the same prompts, the same scorer, a paired interval."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.recipe import Judge
from alignment.recipe.generate import Score
from alignment.stages import execute
from alignment.store import Artifact, Store
from eval.stages.round_comparison import STAGE, RoundRequest
from eval.summaries import RoundSummary
from tests.sampled import SAMPLE, SampledRequest

BEFORE = {"one": ["good"], "two": ["bad"], "three": ["bad"]}
AFTER = {"one": ["good and fine"], "two": ["bad"], "three": ["fine"], "four": ["good"]}


def sampled(store: Store, answers: dict[str, list[str]]) -> Artifact:
    return execute(SAMPLE, SampledRequest(answers=answers), store).artifact


def compared(store: Store, before: dict[str, list[str]], after: dict[str, list[str]], **more: Any) -> RoundSummary:
    given: dict[str, Any] = {"scores": (Score(kind="rubric"),), "round": 2}
    sides = {"before": (sampled(store, before),), "after": (sampled(store, after),)}
    return RoundSummary.of(execute(STAGE, RoundRequest(**sides | given | more), store))


def test_the_mean_on_common_prompts_decides_whether_a_round_improved(store: Store) -> None:
    told = compared(store, BEFORE, AFTER)
    assert (told.prompts, told.before, told.after, told.improved) == (3, 2.5, 5.5, True)
    assert told.difference == 3 and told.low is not None and told.low < 3
    assert not compared(store, AFTER, BEFORE).improved
    assert not compared(store, BEFORE, BEFORE).improved, "as good is not better"


def test_a_judge_that_compares_sees_the_answers_of_both_policies(store: Store, server: Any) -> None:
    given = {"kind": "openai", "model": "m", "base_url": server.url, "api_key_env": "TEST_JUDGE_KEY", "retries": 0}
    server.verdict = lambda user: "[[A]]" if "fine" in user.partition("<answer B>")[0] else "[[B]]"
    asked = {"scores": (Score(kind="judge_pairs"),), "judge": Judge.model_validate(given)}
    told = compared(store, {"one": ["bad"], "two": ["worse"]}, {"one": ["fine"], "two": ["so fine"]}, **asked)
    assert (told.before, told.after, told.improved) == (0.0, 1.0, True)
    assert server.requests == 4 == told.judge["judgments"]


def test_prompts_without_a_score_are_counted_and_none_left_is_an_error(store: Store) -> None:
    with pytest.raises(BadInput, match=r"no held-out prompt has a score \(the prompt has no answer to compare with: 7"):
        compared(store, BEFORE, AFTER, scores=(Score(kind="exact"),))
