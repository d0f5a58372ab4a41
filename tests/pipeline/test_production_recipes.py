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
from assets.upstream import Upstream
from resources.home import PROJECT

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5_0.5b_1gpu": {"model_type": "qwen2", "tie_word_embeddings": True},
    "zephyr_7b_dpo": {"model_type": "mistral", "sliding_window": 4096},
    "llama3_8b_node": {"model_type": "llama", "rope_theta": 500_000.0},
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
CONTEXT = 2048


def write_model(folder: Path, shape: dict[str, Any], template: str | None) -> Path:
    """A checkpoint of the architecture: two layers, random weights, a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = template
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        **shape,
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def small_data(folder: Path) -> dict[str, str]:
    """Data in the published formats of what the recipes name: UltraChat, UltraFeedback, and the three suites."""

    def user(text: str) -> dict[str, str]:
        return {"role": "user", "content": text}

    def assistant(text: str) -> dict[str, str]:
        return {"role": "assistant", "content": text}

    chats = [{"prompt": f"Say {n}", "messages": [user(f"Say {n}"), assistant(f"Number {n}.")]} for n in range(40)]
    pairs = [
        {
            "prompt": f"Name {n}",
            "chosen": [user(f"Name {n}"), assistant(f"It is {n}.")],
            "rejected": [user(f"Name {n}"), assistant("No.")],
        }
        for n in range(48)
    ]
    sums = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(12)]
    shots = [{"question": f"What is {n} + 2?", "answer": f"#### {n + 2}"} for n in range(8)]
    prompts = [
        {
            "key": n,
            "prompt": f"Write {n} without commas.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{}],
        }
        for n in range(6)
    ]
    questions = [{"question_id": n, "category": "writing", "turns": [f"Write {n}.", "Again."]} for n in range(81, 85)]
    return {
        "chats": write_lines(folder / "chats.jsonl", chats),
        "pairs": write_lines(folder / "pairs.jsonl", pairs),
        "gsm8k": write_lines(folder / "gsm8k.jsonl", sums),
        "few_shot": write_lines(folder / "few_shot.jsonl", shots),
        "ifeval": write_lines(folder / "ifeval.jsonl", prompts),
        "mt_bench": write_lines(folder / "mt_bench.jsonl", questions),
    }


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
    recipe["dpo"] |= {"batch_size": 16, "micro_batch_size": 8}
    evals = recipe["evals"]
    evals["gsm8k"] |= {"data": data["gsm8k"], "few_shot_data": data["few_shot"], "max_new_tokens": 16}
    evals["ifeval"] = {"data": data["ifeval"], "max_new_tokens": 16}
    evals["mt_bench"] = {"data": data["mt_bench"], "max_new_tokens": 16}
    recipe |= {"judge": None, "gate": "none", "pools": {}}
    return recipe


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_production_recipe_runs_end_to_end_at_two_layers(
    name: str, tmp_path: Path, bring_up_to_date: Callable[[Recipe], Upstream]
) -> None:
    shipped = yaml.safe_load((PROJECT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    template = None if shipped["base_model"].get("chat_template") else CHAT_TEMPLATE
    model = write_model(tmp_path / "model", SHAPES[name], template)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(smaller(shipped, str(model), small_data(tmp_path))), encoding="utf-8")
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
    assert set(summary("evaluation_report")["comparisons"]) == {"gsm8k", "ifeval"}
    assert summary("registered_model")["registered"] is False
    launched = list(bring_up_to_date.launched)  # type: ignore[attr-defined]
    bring_up_to_date(recipe)
    assert bring_up_to_date.launched == launched  # type: ignore[attr-defined]
