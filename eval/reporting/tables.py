"""The comparison as it is read: one table a suite, every metric with its place in the suite's forest plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from eval.compare import MetricComparison
from eval.evidence import Compared
from eval.headline import headline, title_of
from eval.preferences import PREFERENCES
from eval.reporting.forest import Axis, axis
from eval.requirement import items
from eval.scale import scale_told
from eval.suites import SUITES
from eval.units import Unit, unit_of


@dataclass(frozen=True)
class Line:
    """One metric: numbers in its unit as text, and its interval's places on the axis in per cent."""

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
    """One suite against one baseline, with the axis that its metrics share."""

    suite: str
    title: str
    unit: str
    lines: list[Line]
    axis: Axis


def tables(compared: Compared) -> list[Table]:
    """A table per compared suite; metrics on scales of different width get tables of their own."""
    made: list[Table] = []
    for suite, metrics in compared.suites.items():
        main = headline(suite, metrics)
        for width in dict.fromkeys(found.width for found in metrics.values()):
            alike = {metric: found for metric, found in metrics.items() if found.width == width}
            made.append(_table(suite, alike, unit_of(width), width, main))
    return made


def _table(suite: str, metrics: Mapping[str, MetricComparison], unit: Unit, width: float | None, main: str) -> Table:
    ends = [
        end * unit.factor
        for found in metrics.values()
        for end in (found.difference, *(found.ci95 if found.ci95 is not None else ()))
    ]
    shared = axis(ends)
    name = unit.name if suite not in SUITES or unit.sign or width is None else f"{unit.name} of {scale_told(suite)}"
    if suite == PREFERENCES and width is None:
        name = "nats"
    lines = [_line(metric, found, unit, shared, metric == main) for metric, found in metrics.items()]
    return Table(suite, title_of(suite), name, sorted(lines, key=lambda line: not line.is_headline), shared)


def _line(metric: str, found: MetricComparison, unit: Unit, shared: Axis, is_headline: bool) -> Line:
    low, high = found.ci95 if found.ci95 is not None else (None, None)
    return Line(
        metric=metric,
        is_headline=is_headline,
        n=f"{found.n}" if found.n == found.clusters else f"{found.n} in {found.clusters}",
        left_out=items(found).partition(", ")[2],
        changed=f"{found.gained} / {found.lost}",
        baseline=unit.told(found.baseline) + unit.sign,
        candidate=unit.told(found.candidate) + unit.sign,
        difference=unit.told(found.difference, "+"),
        interval="unknown" if low is None else f"{unit.told(low, '+')} to {unit.told(high, '+')}",
        detectable=unit.told(found.minimum_detectable_effect),
        verdict=found.verdict,
        at=shared.place(found.difference * unit.factor),
        low=None if low is None else shared.place(low * unit.factor),
        high=None if high is None else shared.place(high * unit.factor),
    )
