"""MT-Bench: two-turn questions graded 1 to 10 by a judge (Zheng et al. 2023), in FastChat's file forms."""

from __future__ import annotations

from eval.suites.suite import Item, Suite

TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""FastChat's, by category; the others (extraction, math, coding, reasoning) are answered greedily."""


def temperature_of(item: Item) -> float:
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
