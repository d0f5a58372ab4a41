"""The geometry of a forest plot: differences with their intervals on one axis, in SVG units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 320.0
ROW_HEIGHT = 26.0
MARGIN = 12.0
AXIS_HEIGHT = 20.0


@dataclass(frozen=True)
class Row:
    """One line: its place from the top, the point, and the ends of its interval (None where unknown)."""

    label: str
    y: float
    x: float
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True)
class Tick:
    x: float
    label: str


@dataclass(frozen=True)
class Forest:
    """A plot of `width` × `height`; `zero` is where no difference lies."""

    rows: list[Row]
    ticks: list[Tick]
    zero: float
    width: float
    height: float


def forest(
    labels: Sequence[str],
    points: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    verdicts: Sequence[str],
) -> Forest:
    """Lays out one row per label on an axis that holds zero and every interval."""
    ends = [0.0, *points, *(end for pair in intervals if pair is not None for end in pair)]
    step = _step(max(ends) - min(ends) or 1.0)
    first, last = math.floor(min(ends) / step), math.ceil(max(ends) / step)
    if first == last:
        first, last = first - 1, last + 1

    def place(value: float) -> float:
        return round(MARGIN + (WIDTH - 2 * MARGIN) * (value / step - first) / (last - first), 2)

    rows = [
        Row(
            label=label,
            y=(index + 0.5) * ROW_HEIGHT,
            x=place(point),
            low=None if pair is None else place(pair[0]),
            high=None if pair is None else place(pair[1]),
            verdict=verdict,
        )
        for index, (label, point, pair, verdict) in enumerate(zip(labels, points, intervals, verdicts, strict=True))
    ]
    ticks = [Tick(place(number * step), f"{number * step:+g}" if number else "0") for number in range(first, last + 1)]
    return Forest(rows, ticks, place(0.0), WIDTH, len(rows) * ROW_HEIGHT + AXIS_HEIGHT)


def _step(span: float) -> float:
    """A round distance between ticks that gives three to six of them."""
    magnitude = 10.0 ** math.floor(math.log10(span / 4))
    return next(factor * magnitude for factor in (1, 2, 5, 10) if span / (factor * magnitude) <= 5)
