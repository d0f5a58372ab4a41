"""What the fuzz campaign makes odd: well-formed data, recipes, pools and ballots, each in every form that is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.campaigns import odd

PAIRS: dict[str, list[odd.Record]] = {
    "text": [{"prompt": f"Name {n}", "chosen": f"It is {n}.", "rejected": "No.", "score": n} for n in range(6)],
    "messages": [
        {
            "chosen": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{n}"}],
            "rejected": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": "no"}],
        }
        for n in range(6)
    ],
    "unpaired": [{"prompt": f"Do {n}", "completion": f"done {n}", "label": n % 2 == 0} for n in range(6)],
    "verdicts": [{"prompt": f"Go {n}", "response_a": f"a{n}", "response_b": "b", "winner": "a"} for n in range(6)],
}
"""Preference data in four forms: one row a record."""
TURNS = [{"question_id": 81 + n, "category": "writing", "turns": [f"Write {n}.", "Again."]} for n in range(4)]
SUITES: dict[str, list[odd.Record]] = {
    "gsm8k": [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(4)],
    "ifeval": [
        {"key": n, "prompt": f"Write {n}.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        for n in range(4)
    ],
    "mt_bench": TURNS,
    "xstest": [{"id": n, "type": "homonyms", "prompt": f"How do I kill {n} processes?"} for n in range(4)],
    "mmlu": [{"question": f"{n}?", "subject": "anatomy", "choices": list("abcd"), "answer": n} for n in range(4)],
    "ifbench": [
        {"key": f"{n}", "prompt": f"Say {n}.", "instruction_id_list": ["count:word_count_range"], "kwargs": [{}]}
        for n in range(4)
    ],
    "reward_bench_2": [
        {"id": f"{n}", "prompt": f"{n}?", "chosen": ["yes"], "rejected": ["no", "never"], "subset": "Math"}
        for n in range(4)
    ],
    "math": [{"problem": f"{n} + 1?", "solution": f"$\\boxed{{{n + 1}}}$", "level": "Level 1"} for n in range(4)],
    "alpaca_eval": [
        {"instruction": f"Say {n}", "output": f"{n}", "generator": "base", "dataset": "d"} for n in range(4)
    ],
}


PROMPTS = [{"prompt": f"Write {n}.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]} for n in range(4)]


def forms(recipe: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """The small recipe in every form that a recipe has: each is well-formed before something odd is put into it."""
    prompts = folder / "prompts.jsonl"
    prompts.write_bytes(odd.as_lines(PROMPTS))
    (folder / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    plain = {name: value for name, value in recipe.items() if name != "dpo"}
    dpo = {"method": "dpo", "precision": "float32", "learning_rate": 1e-3, "batch_size": 8, "micro_batch_size": 4}
    metric = "ifeval/prompt_level_strict_acc"
    sampled = {"prompts": {"files": [str(prompts)]}, "n": 2, "max_new_tokens": 8}
    instructions = {"kind": "instructions"}
    whole = plain | {"optimise": dpo}
    return {
        "plain": recipe,
        "chain": plain | {"optimise": [dpo, dpo | {"method": "simpo", "select": {"disagreement": "20 %"}}]},
        "sweep": whole | {"sweep": {"beta": [0.1, 0.2], "rows": [8, 16], "by": metric}},
        "merge": whole | {"merge": [{"of": "policy", "weight": 0.6}, {"of": "sft", "weight": 0.4}]},
        "rounds": whole | {"rounds": sampled | {"count": 2, "score": instructions, "beta": [0.1, 0.2]}},
        "generate": whole
        | {
            "generate": sampled | {"score": [{"kind": "reward_model"}], "pairs": "margin", "min_gap": 0.1},
            "reward_model": {"adopt": recipe["base_model"]},
        },
        "extends": {
            "extends": "presets/zephyr_7b",
            **{key: plain[key] for key in ("name", "base_model", "preferences")},
        },
        "gate": whole | {"gate": {"seeds": 3, "metrics": {metric: {"improve": 0.01}}}},
        "nights": whole
        | {
            "schedule": {"cron": "0 2 * * *", "worth": {"min_new_rows": 5, "provable": True, "max_wait_days": 3}},
            "alerts": {"webhook_env": "HOOK", "format": "text"},
            "evals": plain["evals"] | {"new_rows": {"max_rows": 5}},
        },
        "gguf": whole | {"base_model": {"path": str(folder / "model.gguf")}},
        "columns": whole
        | {
            "preferences": {
                **{key: plain["preferences"][key] for key in ("files",)},
                "columns": {"prompt": "question"},
                "labels": {"up": True},
                "max_rows": 5,
            }
        },
    }


POOLS: dict[str, Any] = {
    "region": "eu",
    "regions": {"s3://bucket": "us"},
    "pools": {
        "local": {"slots": 1, "memory_gib": 16},
        "torchrun": {"slots": 1, "gpus_per_slot": 8, "nodes": 2, "launcher": "torchrun", "torchrun": {"hosts": ["b"]}},
        "ray": {"slots": 1, "gpus_per_slot": 1, "launcher": "ray", "ray": {"address": "http://head:8265", "cpus": 2}},
        "kubernetes": {"slots": 2, "launcher": "kubernetes", "kubernetes": {"image": "x", "memory": "96Gi"}},
        "kuberay": {"slots": 1, "launcher": "kuberay", "kuberay": {"manifest": "job.yaml", "namespace": "n"}},
    },
}
"""A pools file with each launcher."""
KEY = {
    **{"format": 1, "ballot": "b", "a": "one", "b": "two", "digests": {"a": None, "b": None}, "items": "mt_bench"},
    **{"seed": 1, "pairs": {f"{n}": {"item": f"{n}", "cluster": f"c{n}", "left": "ab"[n % 2]} for n in range(4)}},
}
VOTES = [{"ballot": "b", "pair": f"{n}", "vote": ("left", "right", "tie")[n % 3], "voter": "me"} for n in range(4)]
FIGURES = [{"model": "small", "metric": "ifeval/prompt_level_strict_acc", "value": 0.5, "source": "a paper"}]
