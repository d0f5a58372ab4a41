"""Each shipped production recipe runs end to end with its own architecture at two layers and random weights.

Only sizes and data are overridden: method, template, tokens, suites, gate and pools' settings are the recipe's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.recipe import Recipe, load_recipe
from assets.building.upstream import Upstream
from resources.home import PROJECT

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5_0.5b_1gpu": {"model_type": "qwen2", "tie_word_embeddings": True},
    "zephyr_7b_dpo": {"model_type": "mistral", "sliding_window": 4096},
    "llama3_8b_node": {"model_type": "llama", "rope_theta": 500_000.0},
}

TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token }}{% endfor %}"


def smaller(recipe: dict[str, Any], model: str, data: dict[str, str]) -> dict[str, Any]:
    """The recipe with sizes and data overridden, and everything on the pool of this machine."""
    base: dict[str, Any] = {"path": model}
    if template := recipe["base_model"].get("chat_template"):
        base["chat_template"] = template
    recipe["base_model"] = base
    sft = recipe["sft"]
    if "adopt" in sft:
        sft["adopt"] = dict(base)
    else:
        sft |= {"dataset": {"files": [data["chats"]]}, "batch_size": 16, "micro_batch_size": 8, "max_length": 256}
    recipe["preferences"] = {"files": [data["pairs"]], "split_into": 2}
    recipe["held_out_fraction"] = 0.1
    recipe["tokens"]["max_length"] = 256
    recipe["optimise"] |= {"batch_size": 16, "micro_batch_size": 8}
    evals = recipe["evals"]
    evals["gsm8k"] |= {"data": data["gsm8k"], "few_shot_data": data["few_shot"], "max_new_tokens": 16}
    evals["ifeval"] = {"data": data["ifeval"], "max_new_tokens": 16}
    evals["mt_bench"] = {"data": data["mt_bench"], "max_new_tokens": 16}
    recipe |= {"judge": None, "gate": "none", "pools": {}}
    return recipe


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_production_recipe_runs_end_to_end_at_two_layers(
    name: str,
    tmp_path: Path,
    write_model: Callable[..., Path],
    small_data: dict[str, str],
    bring_up_to_date: Callable[[Recipe], Upstream],
) -> None:
    shipped = yaml.safe_load((PROJECT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    template = None if shipped["base_model"].get("chat_template") else TEMPLATE
    shape = dict(SHAPES[name])
    model = write_model(tmp_path / "model", shape.pop("model_type"), template, **shape)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(smaller(shipped, str(model), small_data)), encoding="utf-8")
    recipe = load_recipe(path)

    made = bring_up_to_date(recipe)

    def summary(stage: str) -> dict[str, Any]:
        return made.store.commit_of(made(stage)).summary

    config = json.loads((made.store.fetch(made("policy_checkpoint")) / "config.json").read_text())
    assert config["model_type"] == SHAPES[name]["model_type"]
    assert summary("policy_checkpoint")["weights_digest"] != summary("sft_checkpoint")["weights_digest"]
    policy = summary("policy_checkpoint")
    manifest = summary("preference_manifest")
    assert (
        policy["rows_trained"] + policy["rows_held_out"] + sum(policy["rows_dropped"].values())
        == manifest["rows"]
        == 48
    )
    assert set(summary("evaluation_report")["comparisons"]) == {"gsm8k", "ifeval", "preferences"}
    assert summary("registered_model")["registered"] is False
    launched = list(bring_up_to_date.launched)  # type: ignore[attr-defined]
    bring_up_to_date(recipe)
    assert bring_up_to_date.launched == launched  # type: ignore[attr-defined]
