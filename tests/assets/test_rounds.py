"""Rounds in a graph: what each is made from, and what becomes of the rest when one does not improve."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.recipe import parse_recipe
from alignment.stages import Request, Result, Stage, execute
from alignment.stages.policy import DpoRequest
from alignment.store import Artifact, Ref, Store
from assets.building.node import Node, NotNeeded
from assets.building.upstream import Upstream
from assets.card import trained_on
from eval.summaries import RoundSummary
from tests.assets.test_policy_divergence import nodes, recipe

ROUNDS: dict[str, Any] = {"count": 3, "prompts": {"embedded": "micro"}, "n": 4, "score": {"kind": "rubric"}}


class _Made(Request):
    name: str
    difference: float = 1.0


def _run(request: _Made, context: Any) -> Result:
    """A comparison's interval is a half to either side; `improved` is that of a record of an earlier version."""
    number = int(next((letter for letter in request.name if letter.isdecimal()), 0))
    moved = request.difference
    scores = {"before": 1.0, "after": 1 + moved, "difference": moved, "low": moved - 0.5, "high": moved + 0.5}
    return Result(request.name, RoundSummary(round=number, prompts=7, improved=moved > 0, **scores))


def made(store: Store, name: str, **more: Any) -> Artifact:
    """A node's current artifact."""
    artifact = execute(Stage("made", 1, _Made, _run), _Made(name=name, **more), store).artifact
    store.write_ref(Ref(artifact=artifact), "small", name)
    return artifact


def made_policy(store: Store, name: str) -> DpoRequest:
    """A node's current artifact, with the request of a policy."""
    origin = made(store, f"{name}/origin")
    request = DpoRequest(manifest=origin, checkpoint=origin, settings=recipe().dpo, tokens=recipe().tokens, seed=1)
    stage = Stage("policy", 1, DpoRequest, lambda request, context: Result(name))
    store.write_ref(Ref(artifact=execute(stage, request, store).artifact), "small", name)
    return request


def test_each_round_needs_the_policy_before_it_and_every_comparison() -> None:
    found = nodes(rounds=ROUNDS)
    assert [name for name in found if name.startswith("round_2/")] == [
        f"round_2/{name}"
        for name in ("candidates", "ranked_pairs", "generated_shard", "generated_logprobs", "preference_manifest")
    ] + ["round_2/policy_checkpoint", "round_2/answers", "round_2/comparison"]
    assert found["round_2/candidates"].needs == ("round_1/policy_checkpoint",)
    assert set(found["round_3/candidates"].needs) == {"round_2/policy_checkpoint", "round_2/comparison"}
    assert "round_2/policy_checkpoint" in found["round_3/generated_logprobs"].needs
    assert {"round_2/comparison", "round_3/comparison"} <= set(found["policy_checkpoint"].needs)
    assert not {node for node in found.values() if node.name.startswith("round_") and node.partitioned}


def test_the_reference_of_a_round_is_the_sft_checkpoint_where_the_recipe_says_so() -> None:
    found = nodes(rounds=ROUNDS | {"reference": "sft"})
    assert "sft_checkpoint" in found["round_3/generated_logprobs"].needs
    assert {"sft_checkpoint", "round_2/policy_checkpoint"} <= set(found["round_3/policy_checkpoint"].needs)
    without = nodes(rounds=ROUNDS, optimise={"method": "simpo"})
    assert "round_2/generated_logprobs" not in without


def test_a_round_that_does_not_improve_ends_the_rounds_and_the_best_policy_is_adopted(store: Store) -> None:
    best = made_policy(store, "round_1/policy_checkpoint")
    made_policy(store, "round_2/policy_checkpoint")
    made(store, "round_2/comparison", difference=-0.5)
    found, upstream = nodes(rounds=ROUNDS), Upstream(store, "small")
    told = "round 2 ended the rounds: its policy scores 0.5 on 7 held-out prompts, that of round 1 1"
    for name in ("candidates", "ranked_pairs", "generated_shard", "generated_logprobs", "answers", "comparison"):
        with pytest.raises(NotNeeded, match=told):
            found[f"round_3/{name}"].request(upstream, None)
    for name in ("round_3/policy_checkpoint", "policy_checkpoint"):
        node: Node = found[name]
        assert node.request(upstream, None) == best
        commit = store.commit_of(upstream("round_1/policy_checkpoint"))
        assert "round 2 ended the rounds" in node.show(commit, store.fetch(commit.artifact)).markdown["rounds"]


@pytest.mark.parametrize(
    ("go_on", "difference", "adopted"),
    [
        ("improved", 0.4, 1),  # the mean rose, and the interval holds zero
        ("improved", 0.6, 3),
        ("not_worse", 0.4, 3),
        ("not_worse", -0.6, 1),
        ("always", -0.6, 3),
    ],
)
def test_the_interval_decides_with_which_result_the_rounds_go_on(
    store: Store, go_on: str, difference: float, adopted: int
) -> None:
    policies = {number: made_policy(store, f"round_{number}/policy_checkpoint") for number in (1, 2, 3)}
    made(store, "round_2/comparison", difference=difference)
    made(store, "round_3/comparison")
    node = nodes(rounds=ROUNDS | {"go_on": go_on})["policy_checkpoint"]
    assert node.request(Upstream(store, "small"), None) == policies[adopted]


def test_the_last_round_is_adopted_where_every_round_improved(store: Store) -> None:
    made_policy(store, "round_1/policy_checkpoint")
    last = made_policy(store, "round_3/policy_checkpoint")
    made(store, "round_2/comparison")
    made(store, "round_3/comparison")
    assert nodes(rounds=ROUNDS)["policy_checkpoint"].request(Upstream(store, "small"), None) == last


def test_scores_count_in_the_set_of_a_round_where_training_reads_them(store: Store) -> None:
    for method, reads in (({"target_margin": "scores"}, True), ({}, False)):
        for name in ("generated_shard", "generated_logprobs"):
            made(store, f"round_2/{name}")
        node = nodes(rounds=ROUNDS, optimise=method)["round_2/preference_manifest"]
        assert node.request(Upstream(store, "small"), None).reads_numbers is reads


def test_the_policy_that_is_adopted_is_no_training_of_its_own_for_pool_and_plan() -> None:
    found = nodes(rounds=ROUNDS)
    assert (found["policy_checkpoint"].pool, found["policy_checkpoint"].training) == (None, None)
    assert found["round_3/policy_checkpoint"].training is not None


def test_a_card_names_the_recipes_own_data_the_prompts_and_the_model_that_answered(store: Store) -> None:
    """The last round's own manifest has none of the recipe's shards."""
    made_policy(store, "policy_checkpoint")
    policy = store.commit_of(Upstream(store, "small")("policy_checkpoint"))
    written = {
        "preferences": {"sources": [{"name": "a", "hub": "ours/a", "license": "MIT"}, {"name": "b", "hub": "ours/b"}]},
        "rounds": {"prompts": {"hub": "ours/prompts"}, "weak": {"hub": "theirs/small"}},
    }
    found = [(each["use"], each["name"], each["license"]) for each in trained_on(store, policy, written, {})]
    assert found == [
        ("preferences", "ours/a", "MIT"),
        ("preferences", "ours/b", "unknown"),
        ("prompts", "ours/prompts", "unknown"),
        ("answers", "theirs/small", "unknown"),
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rounds": {"count": 2}}, "prompts"),
        ({"rounds": ROUNDS, "held_out_fraction": 0}, "rounds are compared on held-out prompts"),
        ({"rounds": ROUNDS | {"beta": [0.1]}}, "beta: 1 values for 3 rounds; give one for each"),
        ({"rounds": ROUNDS | {"score": []}}, "needs score"),
        ({"rounds": ROUNDS | {"score": {"kind": "judge"}}}, "asks a judge, and the recipe has no judge of kind openai"),
        ({"rounds": ROUNDS | {"score": {"kind": "reward_model"}}}, "the recipe has no section reward_model"),
        ({"rounds": ROUNDS | {"n": 1}}, "a pair needs two answers"),
        (
            {"rounds": ROUNDS | {"pairs": "delta", "weak": "base"}, "optimise": {"target_margin": "scores"}},
            "rounds.pairs: delta scores no answer of weak, which target_margin: scores reads",
        ),
        ({"rounds": ROUNDS | {"temperature": 0}}, "several answers to a prompt need one above 0"),
        ({"generate": {**ROUNDS, "count": None}}, "generate.count"),
        (
            {
                "generate": {"prompts": {"embedded": "micro"}, "score": {"kind": "reward_model"}},
                "reward_model": {},
            },
            "would be trained on what it has scored",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(changes: dict[str, Any], told: str) -> None:
    plain = {"name": "small", "base_model": {"embedded": "micro"}, "sft": {"dataset": {"embedded": "micro"}}}
    with pytest.raises(Exception, match=told) as raised:
        parse_recipe(plain | {"preferences": {"embedded": "micro"}} | changes, "-", {})
    assert "\n" not in str(raised.value)
