"""Ranked pairs: scored candidates become a shard like any other, and everything that is in no pair is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from alignment.data.rows import read_rows
from alignment.errors import BadInput
from alignment.generation import openai_client
from alignment.recipe import Judge, Reading
from alignment.recipe.generate import Score
from alignment.stages import execute
from alignment.stages.preference_shard import STAGE as SHARD
from alignment.stages.preference_shard import ShardRequest
from alignment.stages.stage import ShardSummary
from alignment.store import Artifact, Store
from assets.generation import show_ranked
from eval.stages.ranked_pairs import STAGE, RankedRequest, RankedSummary
from tests.sampled import SAMPLE, SampledRequest

Sampled = dict[str, list[str]]


ANSWERS: Sampled = {
    "one": ["good and fine", "good", "bad", "bad"],
    "two": ["worse", "fine here"],
    "three": ["same", "same"],
    "four": ["all", "equal"],
    "five": ["good and never end|", "good"],
}


@pytest.fixture
def sampled(store: Store) -> Callable[..., Artifact]:
    return lambda answers=ANSWERS, **more: execute(SAMPLE, SampledRequest(answers=answers, **more), store).artifact


def rank(store: Store, *candidates: Artifact, **more: Any) -> Artifact:
    given: dict[str, Any] = {"scores": (Score(kind="rubric"),), "candidates": candidates}
    return execute(STAGE, RankedRequest(**given | more), store).artifact


def judge_at(server: Any) -> Judge:
    given = {"model": "m", "base_url": server.url, "api_key_env": "TEST_JUDGE_KEY", "retries": 0}
    return Judge.model_validate({"kind": "openai"} | given)


def shard(store: Store, pairs: Artifact, **more: Any) -> tuple[list[Any], ShardSummary]:
    commit = execute(SHARD, ShardRequest(generated=pairs, **more), store)
    return read_rows(store.fetch(commit.artifact) / "rows.parquet"), ShardSummary.of(commit)


def test_scored_candidates_become_a_shard_with_scores_and_origin(
    store: Store, sampled: Callable[..., Artifact]
) -> None:
    pairs = rank(store, sampled(), round=2)
    rows, summary = shard(store, pairs)
    assert [(row.chosen[0]["content"], row.rejected[0]["content"]) for row in rows] == [
        ("good and fine", "bad"),
        ("fine here", "worse"),
    ]
    assert [(row.chosen_score, row.rejected_score) for row in rows] == [(10.0, 1.0), (5.5, 1.0)]
    assert {(row.generator, row.judge, row.round) for row in rows} == {("policy 0123", "rubric", 2)}
    assert summary.kind == "paired" and summary.rows == 2 and summary.pairs is not None
    told = RankedSummary.of(store.commit_of(pairs))
    assert told.left_out == {
        "the same answer again": 2,
        "fewer than two distinct answers": 2,
        "cut at max_new_tokens": 1,
        "all scores are equal": 1,
    }
    assert (told.pairs, told.prompts, told.score_gap, told.longer) == (2, 2, 6.75, 1.0)


def test_the_filters_of_any_shard_take_its_scores(store: Store, sampled: Callable[..., Artifact]) -> None:
    pairs = rank(store, sampled())
    rows, summary = shard(store, pairs, reading=Reading(min_score_gap=5))
    assert len(rows) == 1 and summary.reasons == {"score gap below 5": 1}
    halves, summary = shard(store, pairs, split_pairs=True)
    assert summary.kind == "unpaired" and len(halves) == 4
    rows, summary = shard(store, pairs, withdrawn=(shard(store, pairs)[0][0].row_id,))
    assert len(rows) == 1 and summary.withdrawn == 1


def test_weights_and_length_decide_together(store: Store, sampled: Callable[..., Artifact]) -> None:
    long = {"p": ["good and fine but very long", "good"]}
    assert shard(store, rank(store, sampled(long)))[0][0].chosen[0]["content"].startswith("good and fine")
    short = rank(store, sampled(long), length_penalty=1.0)
    assert shard(store, short)[0][0].chosen[0]["content"] == "good"


def test_a_source_that_did_not_change_is_not_ranked_again(
    store: Store, sampled: Callable[..., Artifact], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_client, "FIRST_DELAY", 1e-3)
    judge = judge_at(server)
    server.verdict = lambda user: f"Rating: [[{9 if 'good' in user else 2}]]"
    asked = {"scores": (Score(kind="judge"),), "judge": judge}
    first, second = sampled({"one": ["good", "bad"]}), sampled({"two": ["good", "bad"]})
    both = rank(store, first, second, **asked)
    assert server.requests == 4 and len(shard(store, both)[0]) == 2
    again = rank(store, first, sampled({"two": ["good", "poor"]}), **asked)
    assert server.requests == 6
    summary = RankedSummary.of(store.commit_of(again))
    assert summary.judge["judgments"] == 4 and summary.judge_name == "judge m" and summary.pairs == 2


def test_a_judge_that_compares_decides_by_points_won(
    store: Store, sampled: Callable[..., Artifact], server: Any
) -> None:
    judge = judge_at(server)
    server.verdict = lambda user: "[[A]]" if "good" in user.partition("<answer B>")[0] else "[[B]]"
    pairs = rank(store, sampled({"p": ["bad", "good", "ugly"]}), scores=(Score(kind="judge_pairs"),), judge=judge)
    (row,), _ = shard(store, pairs)
    assert row.chosen[0]["content"] == "good" and row.chosen_score == 1.0
    assert server.requests == 6


def test_delta_takes_the_strong_generator_s_answer_for_the_better_one(
    store: Store, sampled: Callable[..., Artifact]
) -> None:
    strong, weak = sampled({"p": ["good"]}, generator="strong"), sampled({"p": ["bad"]}, generator="weak")
    (row,), _ = shard(store, rank(store, strong, weak=(weak,), pairs="delta", scores=()))
    assert (row.chosen[0]["content"], row.rejected[0]["content"]) == ("good", "bad")
    assert row.generator == "strong > weak" and row.chosen_score is None
    with pytest.raises(ValueError, match="goes with pairs: delta"):
        RankedRequest(candidates=(strong,), pairs="delta")


def test_no_pair_at_all_says_why(store: Store, sampled: Callable[..., Artifact]) -> None:
    with pytest.raises(BadInput, match="no pair was made of 1 prompt; all scores are equal: 1"):
        rank(store, sampled({"p": ["all", "equal"]}))
    with pytest.raises(BadInput, match="no score: the prompt has no answer to compare with: 2"):
        rank(store, sampled({"p": ["all", "equal"]}), scores=(Score(kind="exact"),))


def test_a_source_that_makes_no_pair_is_named_and_counted_and_the_others_stay(
    store: Store, sampled: Callable[..., Artifact]
) -> None:
    """Of a day all of whose answers score the same, or of which every prompt has one distinct answer."""
    good = sampled({"p": ["good and fine", "bad"]})
    equal, single = sampled({"q": ["all", "equal"], "r": ["a", "b"]}), sampled({"s": ["same", "same"]})
    pairs = rank(store, equal, good, single)
    told = RankedSummary.of(store.commit_of(pairs))
    assert (told.pairs, told.prompts, told.candidates, told.scored, told.unscored) == (1, 1, 8, 6, 1)
    assert told.left_out == {
        "all scores are equal": 2,
        "fewer than two distinct answers": 1,
        "the same answer again": 1,
    }
    assert list(told.without_pairs.values()) == [
        "no pair was made of 1 prompt; the same answer again: 1, fewer than two distinct answers: 1"
    ], "both are of the source s"
    assert "without_pairs" in show_ranked(store.commit_of(pairs), store.fetch(pairs)).markdown
    assert len(shard(store, pairs)[0]) == 1
    assert "without_pairs" not in store.commit_of(rank(store, good)).summary
    with pytest.raises(BadInput, match="none of 2 sources of prompts makes a pair: s: no pair was made of 2 prompts;"):
        rank(store, equal, single)


def test_a_budget_that_ends_in_the_middle_costs_the_answers_that_were_not_judged_and_keeps_the_rest(
    store: Store, sampled: Callable[..., Artifact], server: Any
) -> None:
    server.verdict = lambda user: f"Rating: [[{9 if 'good' in user else 2}]]"
    server.usage = {"prompt_tokens": 1400, "completion_tokens": 5, "total_tokens": 1405}
    bounded = judge_at(server).model_copy(update={"budget_tokens": 6000, "max_tokens": 100, "in_flight": 1})
    asked = {"scores": (Score(kind="judge"),), "judge": bounded}
    answers = {f"prompt {n}": ["good", "bad"] for n in range(4)}
    told = RankedSummary.of(store.commit_of(rank(store, sampled(answers), **asked)))
    left = told.left_out["no score: the judge's budget of 6000 tokens ended"]
    assert left == told.unscored == 8 - told.scored > 0 and told.judge["judgments"] == told.scored
    assert 0 < told.pairs < 4, "of prompts whose answers were all judged"


def test_a_checker_that_fails_on_some_prompts_is_counted_there_and_scores_the_others(
    store: Store, sampled: Callable[..., Artifact]
) -> None:
    """A pattern that is none, and a number of words that is none: mistakes in the prompts, which end no run."""
    odd = [{"kind": "regex", "value": "("}], [{"kind": "max_words", "value": "few"}]
    parts = [sampled({name: ["good", "bad"]}, about={"rubric": checks}) for name, checks in zip("ab", odd, strict=True)]
    pairs = rank(store, *parts, sampled({"c": ["good", "bad"]}))
    told = RankedSummary.of(store.commit_of(pairs))
    assert told.pairs == 1 and told.left_out == {
        "no score: the prompt's rubric has a regex that cannot be applied": 2,
        "no score: the prompt's rubric has a max_words that cannot be applied": 2,
    }
