"""How a judge grades suites that have no scorer of their own, and how its verdicts become samples."""

from eval.grading.alpaca import ALPACA
from eval.grading.arena import ARENA
from eval.grading.grading import Answered, Grading
from eval.grading.pairs import PAIRS
from eval.grading.ratings import RATINGS, REFUSALS, SAFETY

ALONE = {"mt_bench": RATINGS, "harmless": SAFETY, "xstest": REFUSALS}
"""Suite to the grading of its answers one by one."""
BESIDE = {"mt_bench": PAIRS, "alpaca_eval": ALPACA, "arena_hard": ARENA}
"""Suite to the grading of its answers in pairs with a baseline's."""


def gradings(suite: str, baseline: bool) -> tuple[Grading, ...]:
    """The gradings of a suite: of single answers if it has such a grading, and of pairs if there is a `baseline`."""
    possible = (ALONE.get(suite), BESIDE.get(suite) if baseline else None)
    return tuple(grading for grading in possible if grading is not None)


__all__ = ["ALONE", "BESIDE", "PAIRS", "RATINGS", "Answered", "Grading", "gradings"]
