"""MT-Bench: two-turn questions graded 1 to 10 by a judge (Zheng et al. 2023), in FastChat's file forms."""

from __future__ import annotations

from eval.suites.suite import Suite

MT_BENCH = Suite(
    name="mt_bench",
    title="MT-Bench",
    fields={"question_id": int, "category": str, "turns": list},
    id_field="question_id",
    metrics=("turn_1", "turn_2", "average", "win_rate"),
    task=None,
    scale=(1.0, 10.0),
    turns=2,
)
