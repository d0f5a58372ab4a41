"""The question sets, in the file formats of GSM8K, IFEval and MT-Bench; every answer can be verified by a program."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from alignment.quickstart.conversations import CATEGORIES
from alignment.quickstart.exchanges import random_line
from alignment.quickstart.holdout import is_held_out
from alignment.quickstart.records import Source, single
from alignment.quickstart.sums import random_sum

Item = dict[str, Any]

GSM8K_ITEMS = 250
IFEVAL_ITEMS = 250
MT_BENCH_ITEMS = {"writing": 32, "roleplay": 16, "math": 16, "extraction": 16, "stem": 16}


def suite_items(suite: str, seed: int) -> list[Item]:
    """The items of `gsm8k`, `ifeval` or `mt_bench`, none of whose prompts is ever trained on.

    MT-Bench questions carry a `rubric`: for each turn a list of checks `{"kind", "value"}`, graded as
    1 + 9 × the share of checks that the reply passes. Raises `KeyError` for another suite.
    """
    return SUITES[suite](random.Random(f"{seed}/{suite}"))


def gsm8k(rng: random.Random) -> list[Item]:
    items: dict[str, Item] = {}
    while len(items) < GSM8K_ITEMS:
        problem = random_sum(rng)
        if is_held_out(problem.prompt) and is_held_out(problem.question):
            items[problem.question] = {"question": problem.question, "answer": problem.answer}
    return list(items.values())


def ifeval(rng: random.Random) -> list[Item]:
    source = Source(rng, held_out=True)
    items = []
    for key in range(IFEVAL_ITEMS):
        (exchange,) = source.draw(single(random_line))
        items.append(
            {
                "key": key,
                "prompt": exchange.prompt,
                "instruction_id_list": [wish.instruction.id for wish in exchange.wishes],
                "kwargs": [wish.kwargs for wish in exchange.wishes],
            }
        )
    return items


def mt_bench(rng: random.Random) -> list[Item]:
    source = Source(rng, held_out=True)
    categories = [category for category, count in MT_BENCH_ITEMS.items() for _ in range(count)]
    items = []
    for question_id, category in enumerate(categories, start=1):
        turns = source.draw(CATEGORIES[category])
        items.append(
            {
                "question_id": question_id,
                "category": category,
                "turns": [turn.prompt for turn in turns],
                "rubric": [turn.checks for turn in turns],
            }
        )
    return items


SUITES: dict[str, Callable[[random.Random], list[Item]]] = {"gsm8k": gsm8k, "ifeval": ifeval, "mt_bench": mt_bench}
