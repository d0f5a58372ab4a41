"""The geometry of a forest plot: differences with their intervals on one axis, in per cent of its width.

Places in per cent let a plot take any width while its text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MARGIN = 6.0
"""Free per cent on both sides, so that the outermost tick's label is not cut."""


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high` (both in the plotted unit) with its ticks; `zero` is where no difference lies."""

    low: float
    high: float
    ticks: list[Tick]
    zero: float

    def place(self, value: float) -> float:
        return place(value, self.low, self.high)


def place(value: float, low: float, high: float) -> float:
    return round(MARGIN + (100.0 - 2 * MARGIN) * (value - low) / (high - low), 2)


def axis(ends: Sequence[float]) -> Axis:
    """An axis that holds zero and everything given, from tick to tick."""
    least, most = min(0.0, *ends), max(0.0, *ends)
    step = _step(most - least or 1.0)
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    if first == last:
        first, last = first - 1, last + 1
    low, high = first * step, last * step
    ticks = [Tick(place(number * step, low, high), _label(number * step)) for number in range(first, last + 1)]
    return Axis(low, high, ticks, place(0.0, low, high))


def _label(value: float) -> str:
    return f"{value:+g}".replace("-", "−") if value else "0"


def _step(span: float) -> float:
    """A round distance between ticks that gives two to five of them."""
    magnitude = 10.0 ** math.floor(math.log10(span / 4))
    return next(factor * magnitude for factor in (1, 2, 5, 10) if span / (factor * magnitude) <= 4)
