"""What a plan says of pairs that are made of sampled answers: how many rows, answers and calls to a judge."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.recipe import Recipe, parse_recipe
from alignment.store import Store
from alignment_dags.planner.forecast import StageForecast
from alignment_dags.planner.generated import pairs_a_prompt
from tests.alignment_dags.planner.test_forecast import EMBEDDED, stages

PRICE = {"input_usd": 2.0, "output_usd": 10.0}
JUDGE: dict[str, Any] = {"kind": "openai", "model": "m", "price": PRICE}
SAMPLED: dict[str, Any] = {"prompts": EMBEDDED | {"parts": 2}, "n": 4, "max_new_tokens": 64, "score": {"kind": "judge"}}
POOLS = dict.fromkeys(("sft", "reference", "policy", "responses"), "h100")


def recipe_of(**sections: Any) -> Recipe:
    plain = {"name": "small", "base_model": EMBEDDED, "sft": {"dataset": EMBEDDED}, "preferences": EMBEDDED}
    plain |= {"pools": POOLS, "held_out_fraction": 0.25, "judge": JUDGE}
    return parse_recipe(plain | sections, "-", {})


def planned(store: Store, **sections: Any) -> dict[str, StageForecast]:
    return stages(recipe_of(**sections), store, rows=1000)


def test_later_rounds_are_planned_with_the_rows_that_they_make(store: Store) -> None:
    """320 prompts, a quarter of them held out, and half of the rest for each of two rounds."""
    found = planned(store, rounds=SAMPLED | {"count": 3, "pairs": "top_k", "top_k": 2, "compare_n": 2})
    assert found["round_1/policy_checkpoint"].slot_seconds.how.startswith("750 rows")
    for number in (2, 3):
        trained = found[f"round_{number}/policy_checkpoint"].slot_seconds
        assert trained.how.startswith("240 rows") and trained.value is not None
        scored = found[f"round_{number}/generated_logprobs"].slot_seconds
        assert scored.how.startswith("240 rows"), "120 prompts, of each two pairs at most; all are scored"
        sampled = found[f"round_{number}/candidates"].slot_seconds
        assert sampled.how.startswith("4 answers to 120 prompts of 320, over 2 rounds") and sampled.value is not None
        assert found[f"round_{number}/answers"].slot_seconds.how.startswith("2 answers to 80 held-out prompts")


def test_a_judge_that_scores_candidates_has_a_price_in_the_plan(store: Store) -> None:
    found = planned(store, rounds=SAMPLED | {"count": 3})
    cost = found["round_2/ranked_pairs"].cost
    assert cost.how == "480 calls to the judge at most, tokens assumed"
    assert cost.value == pytest.approx(480 * (700 * 2 + 200 * 10) * 1e-6)
    compared = found["round_2/comparison"].cost
    assert compared.how.startswith("160 calls"), "80 held-out prompts, an answer of each policy"
    each_two = planned(store, rounds=SAMPLED | {"count": 3, "score": {"kind": "judge_pairs"}})["round_2/ranked_pairs"]
    assert each_two.cost.how.startswith("1,440 calls"), "six pairs of four answers, in both orders"
    bounded = planned(store, rounds=SAMPLED | {"count": 3}, judge=JUDGE | {"budget_usd": 0.5})["round_2/ranked_pairs"]
    assert bounded.cost.value == 1.0, "0.5 for each of two sources of prompts"
    assert bounded.cost.how.endswith("tokens assumed: 1.63 USD, of which judge.budget_usd allows 1")
    free = planned(store, rounds=SAMPLED | {"count": 3}, judge={"kind": "openai", "model": "m"})["round_2/ranked_pairs"]
    assert free.cost.value is None and "480 calls" in free.cost.how


def test_what_generate_makes_is_trained_on_beside_the_preferences(store: Store) -> None:
    found = planned(store, generate=SAMPLED | {"generator": "sft"})
    assert found["generated_logprobs"].slot_seconds.how.startswith("240 rows")
    assert found["policy_checkpoint"].slot_seconds.how.startswith("930 rows"), "three quarters of 1000 + 240"
    assert found["ranked_pairs"].cost.how.startswith("960 calls")


def test_prompts_that_nobody_can_count_leave_the_rows_unknown(store: Store, tmp_path: Any) -> None:
    missing = SAMPLED | {"prompts": {"files": [str(tmp_path / "none.jsonl")]}, "count": 2}
    found = planned(store, rounds=missing)
    for name in ("candidates", "generated_logprobs", "policy_checkpoint"):
        seconds = found[f"round_2/{name}"].slot_seconds
        assert seconds.value is None and "is not known before they are read" in seconds.how
    assert found["round_1/policy_checkpoint"].slot_seconds.value is not None


def test_every_rule_has_its_most_pairs() -> None:
    from alignment.recipe.generate import Sampled

    def most(**given: Any) -> int:
        return pairs_a_prompt(
            Sampled.model_validate({"prompts": EMBEDDED, "score": {"kind": "rubric"}, "n": 5} | given)
        )

    assert (most(), most(pairs="margin", min_gap=1), most(pairs="top_k", top_k=9)) == (1, 10, 2)
    assert most(pairs="delta", weak="base", score=[]) == 5
