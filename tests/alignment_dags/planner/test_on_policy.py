"""What a plan says of on-policy training: its answers, its passes, and what it holds in memory."""

from __future__ import annotations

import re
from typing import Any

import pytest

from alignment.models.memory import BYTES
from alignment.models.shape import shape_of
from alignment.models.size import ACCELERATORS
from alignment.store import Store
from alignment_dags.planner.forecast import StageForecast
from alignment_dags.planner.hours import BANDWIDTH, UTILISATION
from alignment_dags.planner.loads import PROMPT
from tests.alignment_dags.planner.test_forecast import CONFIGS, EMBEDDED
from tests.alignment_dags.planner.test_generated import planned

ROLLOUTS: dict[str, Any] = {
    "prompts": EMBEDDED | {"parts": 2},
    "n": 4,
    "max_new_tokens": 64,
    "score": {"kind": "rubric"},
}
GRPO: dict[str, Any] = {"method": "grpo", "batch_size": 16, "micro_batch_size": 16}
PARTS = re.compile(
    r": ([\d,]+) s \((\d+) %\) sample them, ([\d,]+) at once .*; ([\d,]+) s of forward and backward passes"
)


def policy(store: Store, rollouts: dict[str, Any] | None = None, **settings: Any) -> StageForecast:
    """320 prompts, of which a quarter is held out: 15 steps of 16."""
    found = planned(store, on_policy=ROLLOUTS | (rollouts or {}), optimise=GRPO | settings)
    return found["policy_checkpoint"]


def of_8b(store: Store, rollouts: dict[str, Any] | None = None, **settings: Any) -> StageForecast:
    """The same with the sizes of Llama-3-8B."""
    from alignment_dags.planner.forecast import forecast
    from alignment_dags.run.workspace import Workspace
    from resources.pools import load_pools
    from tests.alignment_dags.planner.test_generated import recipe_of

    of = recipe_of(on_policy=ROLLOUTS | (rollouts or {}), optimise=GRPO | settings)
    found = forecast(Workspace(of, load_pools(), lambda: store), CONFIGS / "llama_3_8b.json", rows=1000)
    return {one.stage: one for one in found}["policy_checkpoint"]


def test_the_plan_says_what_the_time_is_made_up_of(store: Store) -> None:
    """Against the same computed by hand: all weights are read for each token of a batch of answers, and each answer
    goes forward and backward with its own prompt."""
    import json

    shape = shape_of(json.loads((CONFIGS / "llama_3_8b.json").read_text(encoding="utf-8")))
    assert shape is not None
    time = of_8b(store).slot_seconds
    assert time.how.startswith("15 steps of 16 prompts × 4 answers, each taken to be 64 tokens: ")
    assert "no reference" in time.how and "checking the answers is not counted" in time.how
    parts = PARTS.search(time.how)
    assert parts is not None and time.value is not None
    rows = 16 * 4
    assert int(parts[3]) == rows < 16_384 // (PROMPT + 64), "all of a step"
    cache = 2 * BYTES["bfloat16"] * shape.key_width * shape.layers * rows * (PROMPT + 64)
    read = BYTES["bfloat16"] * shape.parameters + cache / 2
    sampling = 15 * 64 * read / (BANDWIDTH * ACCELERATORS["H100"].bandwidth)
    answers, body = 15 * 16 * 4, shape.token_matrices * shape.layers
    seen = sum(range(1, PROMPT + 65))
    forward = 2 * body * (PROMPT + 64) + 2 * shape.embedding * 64 + 4 * shape.query_width * shape.layers * seen
    operations = answers * (3 * forward + 2 * shape.embedding * 64)
    learning = operations / (UTILISATION * ACCELERATORS["H100"].peak_flops)
    assert time.value == pytest.approx(sampling + learning, rel=1e-6)
    assert int(parts[2]) == round(100 * sampling / (sampling + learning))

    near = of_8b(store, {"kl_weight": 0.04}).slot_seconds
    assert near.value == pytest.approx(sampling + learning + answers * forward / (0.3 * 989e12), rel=1e-6)
    assert "of the start checkpoint, for the divergence" in near.how


def test_more_answers_cost_more_and_fewer_steps_less(store: Store) -> None:
    found = [PARTS.search(of_8b(store, {"n": n}).slot_seconds.how) for n in (4, 6, 8)]
    plain, several, twice = ((int(one[1]), int(one[4])) for one in found if one is not None)
    assert several[0] - plain[0] <= 1, "one batch a step has room for six answers each: weights are read as often"
    assert abs(twice[0] - 2 * plain[0]) <= 1, "two batches"
    assert abs(several[1] - 1.5 * plain[1]) <= 1 and abs(twice[1] - 2 * plain[1]) <= 1, "each answer is learned from"
    short = policy(store, max_steps=5).slot_seconds
    assert short.how.startswith("5 steps of 16 prompts")
    assert policy(store, epochs=2).slot_seconds.how.startswith("30 steps")


def test_memory_is_the_larger_of_sampling_and_learning_and_the_start_checkpoint_stands_beside(store: Store) -> None:
    learning = of_8b(store, micro_batch_size=64)
    assert {"activations", "gradients"} <= learning.memory_parts_gib.keys()
    sampling = of_8b(store, {"max_new_tokens": 1024}, micro_batch_size=1, gradient_checkpointing=True)
    assert "tokens at once, activations checkpointed, and 16,384 while it samples" in sampling.memory_gib.how
    parts = of_8b(store, {"kl_weight": 0.1}).memory_parts_gib
    assert (
        parts["other model"] == pytest.approx(parts["weights"])
        and "1 more beside it" in of_8b(store, {"kl_weight": 0.1}).memory_gib.how
    )
    wide = of_8b(store)
    changes = {change for remedy in wide.remedies for change in remedy.changes}
    assert wide.fits is False and not any("lora" in change or "sharded" in change for change in changes), (
        "not with grpo"
    )


def test_where_nobody_can_count_prompts_the_plan_says_so(store: Store, tmp_path: Any) -> None:
    missing = policy(store, {"prompts": {"files": [str(tmp_path / "none.jsonl")]}}).slot_seconds
    assert missing.value is None and "is not known before they are read" in missing.how
    slow = policy(store, precision="float32").slot_seconds
    assert slow.value is None and slow.how.startswith("15 steps of 16 prompts × 4 answers")


def test_prompts_that_do_not_fill_a_step_are_named(store: Store) -> None:
    time = of_8b(store, batch_size=1024, micro_batch_size=1024).slot_seconds
    assert (time.value, time.how) == (None, "its prompts do not fill one step of 1,024")
