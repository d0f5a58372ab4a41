"""The comparison as tables: a table for each suite, with every metric's place in the suite's forest plot."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.gate.compare import MetricComparison, describe_scale, width_of
from eval.gate.metrics import PREFERENCES, Unit, headline, title_of, unit_of
from eval.gate.requirement import items
from eval.gate.scores import Compared
from eval.suites import SUITES
from eval.suites.samples import Sample

# The geometry of a forest plot: differences with their intervals on one axis, in per cent of its width.
#
# Places are in per cent, so a plot can have any width while its text keeps its size.

MARGIN = 6.0
"""Per cent of free space on both sides, so that the labels of the outermost ticks are not cut."""


@dataclass(frozen=True)
class Tick:
    """A tick of an axis: its place in per cent of the width, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`, both in the plotted unit, with its ticks; `zero` is the place of 0 in per cent."""

    low: float
    high: float
    ticks: list[Tick]
    zero: float

    def place(self, value: float) -> float:
        """The place of a value on this axis, in per cent of the width."""
        return place(value, self.low, self.high)


def place(value: float, low: float, high: float) -> float:
    """The place of a value on an axis from `low` to `high`, in per cent of the width."""
    return round(MARGIN + (100.0 - 2 * MARGIN) * (value - low) / (high - low), 2)


def axis(ends: Sequence[float]) -> Axis:
    """An axis that contains zero and all `ends`, and that begins and ends with a tick."""
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


@dataclass(frozen=True)
class Line:
    """A metric: its numbers as text, in its unit, and the places of its interval on the axis in per cent."""

    metric: str
    is_headline: bool
    n: str
    left_out: str
    changed: str
    baseline: str
    candidate: str
    difference: str
    interval: str
    detectable: str
    verdict: str
    at: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Table:
    """A suite against a baseline, with the axis that its metrics share."""

    suite: str
    title: str
    unit: str
    lines: list[Line]
    axis: Axis


def tables(compared: Compared) -> list[Table]:
    """A table for each compared suite; metrics on scales of different width are in separate tables."""
    made: list[Table] = []
    for suite, metrics in compared.suites.items():
        main = headline(suite, metrics)
        for width in dict.fromkeys(comparison.width for comparison in metrics.values()):
            alike = {metric: comparison for metric, comparison in metrics.items() if comparison.width == width}
            made.append(_table(suite, alike, unit_of(width), width, main))
    return made


def _table(suite: str, metrics: Mapping[str, MetricComparison], unit: Unit, width: float | None, main: str) -> Table:
    ends = [
        end * unit.factor
        for comparison in metrics.values()
        for end in (comparison.difference, *(comparison.ci95 if comparison.ci95 is not None else ()))
    ]
    shared = axis(ends)
    name = unit.name if suite not in SUITES or unit.sign or width is None else f"{unit.name} of {describe_scale(suite)}"
    if suite == PREFERENCES and width is None:
        name = "nats"
    lines = [_line(metric, comparison, unit, shared, metric == main) for metric, comparison in metrics.items()]
    return Table(suite, title_of(suite), name, sorted(lines, key=lambda line: not line.is_headline), shared)


def _line(metric: str, comparison: MetricComparison, unit: Unit, shared: Axis, is_headline: bool) -> Line:
    low, high = comparison.ci95 if comparison.ci95 is not None else (None, None)
    return Line(
        metric=metric,
        is_headline=is_headline,
        n=f"{comparison.n}" if comparison.n == comparison.clusters else f"{comparison.n} in {comparison.clusters}",
        left_out=items(comparison).partition(", ")[2],
        changed=f"{comparison.gained} / {comparison.lost}",
        baseline=unit.format(comparison.baseline) + unit.sign,
        candidate=unit.format(comparison.candidate) + unit.sign,
        difference=unit.format(comparison.difference, "+"),
        interval="unknown" if low is None else f"{unit.format(low, '+')} to {unit.format(high, '+')}",
        detectable=unit.format(comparison.minimum_detectable_effect),
        verdict=comparison.verdict,
        at=shared.place(comparison.difference * unit.factor),
        low=None if low is None else shared.place(low * unit.factor),
        high=None if high is None else shared.place(high * unit.factor),
    )


# Scores by category, for suites whose items have categories (MT-Bench has eight).


@dataclass(frozen=True)
class Bar:
    """A model's mean in a category: as text, and in per cent of the scale."""

    model: str
    text: str
    width: float


@dataclass(frozen=True)
class Category:
    """A category with its number of items and a bar for each model."""

    name: str
    items: int
    bars: list[Bar]


@dataclass(frozen=True)
class Categories:
    """A suite's main metric by category, for every model that was measured."""

    suite: str
    title: str
    metric: str
    scale: str
    categories: list[Category]


def categories(
    suite: str, models: Mapping[str, Sequence[Sample]], category_of: Mapping[str, str], scale: tuple[float, float]
) -> Categories | None:
    """Means by category over the items that every model was measured on; None for fewer than two categories.

    `category_of` maps a sample's cluster to its category. A bar begins at the lower end of `scale`, the suite's scale.
    """
    metric = headline(suite, [sample.metric for samples in models.values() for sample in samples])
    values = {
        model: {s.id: (s.cluster, s.value) for s in samples if s.metric == metric and s.value is not None}
        for model, samples in models.items()
    }
    common = set.intersection(*(set(by_id) for by_id in values.values()))
    grouped: defaultdict[str, list[str]] = defaultdict(list)
    first = next(iter(values.values()))
    for name, (cluster, _) in first.items():
        if name in common and cluster in category_of:
            grouped[category_of[cluster]].append(name)
    if len(grouped) < 2:
        return None
    unit = unit_of(width_of(suite, metric, [value for by_id in values.values() for _, value in by_id.values()]))
    low, high = scale

    def bar(model: str, names: list[str]) -> Bar:
        mean = math.fsum(values[model][name][1] for name in names) / len(names)
        return Bar(model, unit.format(mean) + unit.sign, round(100 * (mean - low) / (high - low), 2))

    return Categories(
        suite=suite,
        title=title_of(suite),
        metric=metric,
        scale=f"{low * unit.factor:g} to {high * unit.factor:g}{unit.sign}",
        categories=[
            Category(name, len({first[item][0] for item in names}), [bar(model, names) for model in models])
            for name, names in sorted(grouped.items())
        ],
    )
