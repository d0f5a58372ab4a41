"""The settings around a method, from the data's columns to the registry and out of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from alignment.recipe import parse_recipe
from alignment.stages.stage import PolicySummary
from alignment_dags.registry.export import export
from alignment_dags.registry.lineage import lineage_of
from assets.building.upstream import Upstream

STARTED = ("sft_checkpoint", "policy_checkpoint")
PASSES = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}}


def test_weights_sft_rows_masks_and_a_kept_adapter_go_from_data_to_registry_and_export(
    small_recipe: dict[str, Any],
    small_data: dict[str, str],
    bring_up_to_date: Callable[..., Upstream],
    tmp_path: Path,
) -> None:
    pairs = [json.loads(line) for line in Path(small_data["pairs"]).read_text().splitlines()]
    weighted = tmp_path / "weighted.jsonl"
    weighted.write_text("".join(json.dumps(pair | {"trust": n % 3}) + "\n" for n, pair in enumerate(pairs)))
    lora = {"rank": 4, "alpha": 8, "keep_adapter": True}
    recipe = small_recipe | {
        "sft": {"dataset": {"files": [small_data["chats"]]}, "precision": "float32", "max_steps": 2, "batch_size": 8},
        "preferences": {"files": [str(weighted)], "weight_column": "trust"},
        "tokens": small_recipe["tokens"] | {"format_tokens": "mask"},
        "dpo": small_recipe["dpo"] | {"weighted": True, "sft_rows_fraction": 0.25, "lora": lora, "max_steps": 4},
        "gate": PASSES,
    }
    made = bring_up_to_date(parse_recipe(recipe, "-", {}))
    policy = made.store.commit_of(made("policy_checkpoint"))
    summary = PolicySummary.of(policy)
    assert summary.steps == 4 and summary.sft_rows and all("sft_loss" in record for record in summary.history)
    assert policy.inputs["sft_dataset"] == made("sft_dataset")
    named = lineage_of("small")["policy"]["adapter"]
    assert named["base_digest"] == made("sft_checkpoint").digest
    assert sorted(export("small", tmp_path / "adapter", print, adapter=True)["files"]) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    lighter = recipe | {"dpo": recipe["dpo"] | {"weighted": False}}
    again = bring_up_to_date(parse_recipe(lighter, "-", {}))
    assert again("reference_logprobs", "weighted") == made("reference_logprobs", "weighted"), "nothing is scored again"
    assert again("policy_checkpoint") != policy.artifact


def test_four_bits_go_from_reference_to_registry_and_the_registered_checkpoint_is_whole(
    small_recipe: dict[str, Any], bring_up_to_date: Callable[..., Upstream], tmp_path: Path
) -> None:
    lora = {"rank": 4, "alpha": 8, "quantise": "nf4"}
    recipe = small_recipe | {"dpo": small_recipe["dpo"] | {"lora": lora, "max_steps": 3}, "gate": PASSES}
    made = bring_up_to_date(parse_recipe(recipe, "-", {}))
    store = made.store
    shard = min(store.read_refs("small", "reference_logprobs"))
    reference = made("reference_logprobs", shard)
    asked = json.loads(store.read(reference, "request.json"))
    assert asked["quantise"] == "nf4"
    summary = PolicySummary.of(store.commit_of(made("policy_checkpoint")))
    assert summary.steps == 3 and (summary.agreement["worst_nats"] or 0) < 0.01
    exported = export("small", tmp_path / "model", print)["files"]
    assert "model.safetensors" in exported
    start, policy = (load_file(store.fetch(made(name)) / "model.safetensors") for name in STARTED)
    assert {name: (weight.dtype, weight.shape) for name, weight in policy.items()} == {
        name: (weight.dtype, weight.shape) for name, weight in start.items()
    }
    whole = recipe | {"dpo": recipe["dpo"] | {"lora": lora | {"quantise": None}}}
    again = bring_up_to_date(parse_recipe(whole, "-", {}))
    assert again("reference_logprobs", shard) != reference, "a reference of its own"
