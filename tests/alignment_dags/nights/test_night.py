"""A night's costs are those of what it made."""

from __future__ import annotations

from typing import Any

from alignment.store import Commit
from alignment_dags.nights.night import Costs, Scored, night_costs


def commit(stage: str, key: str, seconds: float, **summary: Any) -> Commit:
    return Commit(
        kind=stage,
        key=key,
        attempt="a",
        digest="d",
        stage=stage,
        code_version=1,
        inputs={},
        files={},
        summary=summary,
        environment={},
        started_at="2026-11-21T02:00:00+00:00",
        seconds=seconds,
    )


def test_costs_are_summed_by_stage_and_a_key_counts_once() -> None:
    shard = commit("reference_logprobs", "1", 2.0, scored=10, cache_hits=90, tokens=500)
    made = [
        shard,
        shard,
        commit("reference_logprobs", "2", 3.0, scored=0, cache_hits=100, tokens=0),
        commit("policy_checkpoint", "3", 60.0, tokens=7_000),
        commit("sft_checkpoint", "4", 30.0),  # adopted: nothing was trained
        commit("responses", "5", 8.0, tokens=900),
        commit("scores", "6", 1.0),
        commit("scores", "7", 1.5),
    ]
    costs = night_costs(made, {}, Scored())
    assert (costs.sequences_scored, costs.tokens_trained, costs.suites_run) == (10, 7_000, 2)
    assert costs.seconds == {
        "policy_checkpoint": 60.0,
        "sft_checkpoint": 30.0,
        "responses": 8.0,
        "reference_logprobs": 5.0,
        "scores": 2.5,
    }
    assert costs.told().startswith("10 sequences scored, 7,000 tokens trained, 2 suites run in 105.5 s (policy_check")


def test_nothing_made_costs_nothing() -> None:
    assert night_costs([], {"responses": 3.0}, Scored()) == Costs()
    assert Costs().told() == "0 sequences scored, 0 tokens trained, 0 suites run in 0.0 s"


def test_pools_that_name_a_price_are_added_up_and_others_have_none() -> None:
    made = [commit("policy_checkpoint", "1", 1800.0, tokens=7), commit("scores", "2", 600.0)]
    costs = night_costs(made, {"policy_checkpoint": 24.0, "responses": 3.0}, Scored())
    assert costs.price == 12.0
    assert costs.told().endswith(" for 12.00")


def test_what_was_scored_between_the_nights_is_told_beside_the_nights_own() -> None:
    between = Scored(shards=3, sequences=1_200, tokens=90_000, seconds=12.0, price=0.01)
    costs = night_costs([commit("reference_logprobs", "1", 2.0, scored=10)], {}, between)
    assert costs.sequences_scored == 10
    assert costs.told() == (
        "10 sequences scored, 0 tokens trained, 0 suites run in 2.0 s (reference_logprobs 2.0 s); "
        "between the nights 1,200 sequences (90,000 tokens) of 3 shards scored in 12.0 s for 0.01"
    )
