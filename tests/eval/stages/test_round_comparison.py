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


def test_the_interval_on_common_prompts_decides_whether_a_round_improved(store: Store) -> None:
    told = compared(store, BEFORE, AFTER)
    assert (told.prompts, told.before, told.after, told.difference) == (3, 2.5, 5.5, 3)
    assert told.low is not None and told.low < 0, "three prompts show little"
    assert (told.verdict, told.improved) == ("inconclusive", False), "though the mean rose"
    many = [{f"{name} {n}": texts for n in range(12) for name, texts in side.items()} for side in (BEFORE, AFTER)]
    better, worse = compared(store, *many), compared(store, *reversed(many))
    assert (better.verdict, better.improved, worse.verdict) == ("improved", True, "worse")


def test_a_round_that_changed_hardly_any_answer_has_an_interval_by_the_scores_scale(store: Store) -> None:
    """Where no answer differs the standard error is zero, and unseen prompts may differ all the same."""
    same = compared(store, BEFORE, BEFORE)
    assert same.low is not None and same.high is not None and same.low < -1 < 1 < same.high
    assert (same.verdict, same.improved) == ("inconclusive", False), "as good is not better"
    penalised = compared(store, BEFORE, BEFORE, length_penalty=0.1)
    assert (penalised.low, penalised.verdict) == (None, "inconclusive"), "nothing bounds a length"


def test_a_judge_that_compares_sees_the_answers_of_both_policies(store: Store, server: Any) -> None:
    given = {"kind": "openai", "model": "m", "base_url": server.url, "api_key_env": "TEST_JUDGE_KEY", "retries": 0}
    server.verdict = lambda user: "[[A]]" if "fine" in user.partition("<answer B>")[0] else "[[B]]"
    asked = {"scores": (Score(kind="judge_pairs"),), "judge": Judge.model_validate(given)}
    told = compared(store, {"one": ["bad"], "two": ["worse"]}, {"one": ["fine"], "two": ["so fine"]}, **asked)
    assert (told.before, told.after, told.verdict) == (0.0, 1.0, "inconclusive"), "of two prompts"
    assert server.requests == 4 == told.judge["judgments"]


def test_prompts_without_a_score_are_counted_and_none_left_is_an_error(store: Store) -> None:
    with pytest.raises(BadInput, match=r"no held-out prompt has a score \(the prompt has no answer to compare with: 7"):
        compared(store, BEFORE, AFTER, scores=(Score(kind="exact"),))
