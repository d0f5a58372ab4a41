"""Scales: how far a metric can go, which metric stands for its suite, and how a value is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from eval.preferences import PREFERENCES, PREFERENCES_TITLE
from eval.suites import SUITES, suite_named

OUTCOMES = frozenset({0.0, 0.5, 1.0})
"""Wrong, tie and right: a scale from 0 to 1 whatever suite they come from."""
FRACTIONS = frozenset({"acc", "acc_norm", "acc_bytes", "exact_match", "em", "f1", "mc1", "mc2"})
"""Metrics of lm-eval, by name before the comma, whose values are fractions."""
MARGIN_SHARE = 20
"""A default margin is the scale's width over this."""


@dataclass(frozen=True)
class Unit:
    """How values are told: times `factor`, with `digits` decimals; `name` is what differences are counted in, and
    `sign` follows a value."""

    factor: float
    digits: int
    name: str
    sign: str

    def told(self, value: float | None, sign: str = "") -> str:
        """A number with a true minus, and no sign on what rounds to nothing; `sign` "+" asks for a plus."""
        if value is None:
            return "unknown"
        shown = f"{value * self.factor:{sign}.{self.digits}f}"
        return shown.lstrip("+-") if float(shown) == 0.0 else shown.replace("-", "−")


PERCENT = Unit(100.0, 1, "percentage points", " %")
PLAIN = Unit(1.0, 2, "points", "")


def unit_of(width: float | None) -> Unit:
    """Fractions are told in per cent, everything else as it is."""
    return PERCENT if width == 1.0 else PLAIN


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


def headline(suite: str, measured: Iterable[str]) -> str:
    """The metric that stands for a suite among those that were measured; the first of them if its own was not."""
    metrics = list(measured)
    own = SUITES[suite].headline if suite in SUITES else metrics[0]
    return own if own in metrics else metrics[0]


def title_of(suite: str) -> str:
    """The suite as people write it."""
    if suite == PREFERENCES:
        return PREFERENCES_TITLE
    return SUITES[suite].title if suite in SUITES else suite


def default_requirement(suite: str) -> tuple[str, float]:
    """A suite's main metric as `suite/metric`, and the margin that counts as no loss of it."""
    found = suite_named(suite)
    low, high = found.scale_of(found.headline)
    return f"{suite}/{found.headline}", default_margin(high - low)


def scale_told(suite: str) -> str:
    """A suite's scale in words."""
    low, high = SUITES[suite].scale
    return f"a scale from {low:g} to {high:g}"
