"""Scales: how far a metric can go, which metric stands for its suite, and how a difference is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from eval.suites import SUITES

OUTCOMES = frozenset({0.0, 0.5, 1.0})
"""Wrong, tie and right: a scale from 0 to 1 whatever suite they come from."""
MARGIN_SHARE = 20
"""A default margin is the scale's width over this."""


@dataclass(frozen=True)
class Unit:
    """How values are told: times `factor`, with `digits` decimals; `name` is what a difference of one is called."""

    factor: float
    digits: int
    name: str

    def told(self, value: float | None, sign: str = "") -> str:
        if value is None:
            return "unknown"
        shown = f"{value * self.factor:{sign}.{self.digits}f}"
        return shown.replace("-0." + "0" * self.digits, "0." + "0" * self.digits).replace("-", "−")


PERCENT = Unit(100.0, 1, "percentage points")
RATING = Unit(1.0, 2, "points")


def unit_of(width: float | None) -> Unit:
    """Fractions are told in per cent, everything else as it is."""
    return PERCENT if width == 1.0 else RATING


def width_of(suite: str, values: Iterable[float]) -> float | None:
    """The width of the scale that a metric's values lie on, None when it has no known end.

    A metric of a known suite that leaves the suite's scale (a length, a margin) has a scale of its own.
    """
    seen = list(values)
    if suite in SUITES:
        low, high = SUITES[suite].scale
        if all(low <= value <= high for value in seen):
            return high - low
    return 1.0 if OUTCOMES.issuperset(seen) else None


def default_margin(width: float) -> float:
    """What counts as no loss where a recipe names no margin: a twentieth of the scale.

    0.05 of a fraction and 0.45 of a rating from 1 to 10: about the least that 250 right-or-wrong items with 2 % of
    them gained and 2 % lost, or MT-Bench's 80 questions with none changed, can tell from a loss.
    """
    return width / MARGIN_SHARE


def headline(suite: str) -> str:
    """The metric that stands for a suite: the average of a judged one, else its scorer's first."""
    found = SUITES[suite]
    return found.metrics[-1] if found.task is None else found.metrics[0]
