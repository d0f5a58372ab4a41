"""Scales: how far a metric can go, and what counts as no loss on it."""

from __future__ import annotations

from collections.abc import Iterable

from eval.suites import SUITES

OUTCOMES = frozenset({0.0, 0.5, 1.0})
"""Wrong, tie and right: a scale from 0 to 1 whatever suite they come from."""
FRACTIONS = frozenset({"acc", "acc_norm", "acc_bytes", "exact_match", "em", "f1", "mc1", "mc2"})
"""Metrics of lm-eval, by name before the comma, whose values are fractions."""
MARGIN_SHARE = 20
"""A default margin is the scale's width over this."""


def width_of(suite: str, metric: str, values: Iterable[float]) -> float | None:
    """The width of the scale that a metric's values lie on, None when it has no known end (a length, a margin)."""
    if suite in SUITES and metric in SUITES[suite].metrics:
        low, high = SUITES[suite].scale_of(metric)
        return high - low
    return 1.0 if metric.partition(",")[0] in FRACTIONS or OUTCOMES.issuperset(values) else None


def bound_of(suite: str, metric: str, width: float | None) -> float | None:
    """How far two of a metric's item values can lie apart: its width, or None where they are linearised."""
    return None if suite in SUITES and metric in SUITES[suite].linearised else width


def default_margin(width: float) -> float:
    """What counts as no loss where a recipe names no margin: a twentieth of the scale.

    0.05 of a fraction and 0.45 of a rating from 1 to 10: about the least that 250 right-or-wrong items with 2 % of
    them gained and 2 % lost, or MT-Bench's 80 questions with none changed, can tell from a loss.
    """
    return width / MARGIN_SHARE


def scale_told(suite: str) -> str:
    """A suite's scale in words."""
    low, high = SUITES[suite].scale
    return f"a scale from {low:g} to {high:g}"
