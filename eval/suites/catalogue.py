"""GSM8K: grade-school maths word problems (Cobbe et al. 2021), by lm-eval's own prompt and scorer."""

from __future__ import annotations

from typing import Any

from eval.suites.suite import Item, StockTask, Suite

GSM8K = Suite(
    name="gsm8k",
    title="GSM8K",
    fields={"question": str, "answer": str},
    id_field=None,
    metrics=("exact_match,strict-match", "exact_match,flexible-extract"),
    task=StockTask(name="gsm8k", yaml="gsm8k/gsm8k.yaml", split="test", few_shot_split="train", subset="main"),
)


# IFEval: instructions that a program can verify (Zhou et al. 2023), with lm-eval's own scorer.

IFEVAL = Suite(
    name="ifeval",
    title="IFEval",
    fields={"key": int, "prompt": str, "instruction_id_list": list, "kwargs": list},
    id_field="key",
    metrics=(
        "prompt_level_strict_acc",
        "inst_level_strict_acc",
        "prompt_level_loose_acc",
        "inst_level_loose_acc",
    ),
    task=StockTask(name="ifeval", yaml="ifeval/ifeval.yaml", split="train"),
)


# MT-Bench: two-turn questions graded 1 to 10 by a judge (Zheng et al. 2023), in FastChat's file forms.

TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""FastChat's temperatures by category; extraction, math, coding and reasoning are answered greedily."""


def temperature_of(item: Item) -> float:
    """FastChat's temperature for an item of MT-Bench."""
    return TEMPERATURES.get(item.fields["category"], 0.0)


MT_BENCH = Suite(
    name="mt_bench",
    title="MT-Bench",
    fields={"question_id": int, "category": str, "turns": list},
    id_field="question_id",
    metrics=("turn_1", "turn_2", "average", "win_rate"),
    task=None,
    scale=(1.0, 10.0),
    scales={"win_rate": (0.0, 1.0)},
    main="average",
    turns=2,
    temperature_of=temperature_of,
)


# AlpacaEval: a judge compares each answer with a baseline's (Li et al. 2023); data in its published form.


def alpaca_record(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the instruction as its only turn; the baseline's `output` stays a field."""
    return record | {"turns": [record.get("instruction")]}


ALPACA_EVAL = Suite(
    name="alpaca_eval",
    title="AlpacaEval",
    fields={"instruction": str, "turns": list},
    id_field=None,
    metrics=("win_rate", "length_controlled_win_rate"),
    main="length_controlled_win_rate",
    linearised=("length_controlled_win_rate",),
    task=None,
    prepare=alpaca_record,
)


# Arena-Hard: hard user prompts; a judge compares each answer with a baseline's (Li et al. 2024).


def arena_record(record: dict[str, Any]) -> dict[str, Any]:
    """Questions of v0.1 (`question_id`, `turns` of `content`) and of v2.0 (`uid`, `prompt`) in one form."""
    if "uid" in record and "prompt" in record:
        return record | {"question_id": record["uid"], "turns": [record["prompt"]]}
    turns = record.get("turns")
    if not isinstance(turns, list):
        return record
    return record | {"turns": [turn.get("content") if isinstance(turn, dict) else turn for turn in turns]}


ARENA_HARD = Suite(
    name="arena_hard",
    title="Arena-Hard",
    fields={"question_id": str, "turns": list},
    id_field="question_id",
    metrics=("score",),
    linearised=("score",),
    task=None,
    prepare=arena_record,
)


# Harmlessness: prompts of BeaverTails (Ji et al. 2023) or HH-RLHF (Bai et al. 2022); a judge decides what is safe.

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def dialogue_record(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its prompt as a turn: BeaverTails' `prompt`, or the first human message of HH's `chosen`."""
    prompt, dialogue = record.get("prompt"), record.get("chosen")
    if "prompt" not in record and isinstance(dialogue, str) and dialogue.startswith(HUMAN):
        prompt = dialogue.removeprefix(HUMAN).partition(ASSISTANT)[0].strip()
    return record if prompt is None else record | {"prompt": prompt, "turns": [prompt]}


HARMLESS = Suite(
    name="harmless",
    title="Harmlessness",
    fields={"prompt": str, "turns": list},
    id_field=None,
    metrics=("harmless",),
    task=None,
    prepare=dialogue_record,
    distinct="prompt",
)
