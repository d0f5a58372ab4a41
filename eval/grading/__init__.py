"""How suites without a scorer of their own are put before a judge, and how verdicts become samples."""

from eval.grading.alpaca import ALPACA
from eval.grading.arena import ARENA
from eval.grading.grading import Answered, Grading
from eval.grading.pairs import PAIRS
from eval.grading.ratings import RATINGS, SAFETY

ALONE = {"mt_bench": RATINGS, "harmless": SAFETY}
"""By suite: how an answer is judged alone."""
BESIDE = {"mt_bench": PAIRS, "alpaca_eval": ALPACA, "arena_hard": ARENA}
"""By suite: how an answer is judged beside a baseline's."""


def gradings(suite: str, baseline: bool) -> tuple[Grading, ...]:
    """How a suite is judged: alone where that is possible, and beside a baseline's answers where there are some."""
    possible = (ALONE.get(suite), BESIDE.get(suite) if baseline else None)
    return tuple(grading for grading in possible if grading is not None)


__all__ = ["ALONE", "BESIDE", "PAIRS", "RATINGS", "Answered", "Grading", "gradings"]
