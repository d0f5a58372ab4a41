"""A night's costs are those of what it made."""

from __future__ import annotations

from typing import Any

from alignment.artifacts import Commit
from alignment_dags.nights.costs import Costs, night_costs


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
    costs = night_costs(made)
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
    assert night_costs([]) == Costs()
    assert night_costs([]).told() == "0 sequences scored, 0 tokens trained, 0 suites run in 0.0 s"
