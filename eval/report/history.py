"""`history.html`: the main metrics of all registered versions, in their order, and what their trainings were worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from eval.gate.compare import MetricComparison, margin_of
from eval.gate.metrics import headline, title_of, unit_of
from eval.report.facts import day
from eval.report.page import render
from eval.report.worth import Worth

USED_HEIGHT = 94.0
"""Per cent of a plane's height that the values use, so that no line lies on its edge."""


@dataclass(frozen=True)
class Version:
    """One registration of a version, from its commit records: when, which policy, and its comparison with its SFT.

    `before` says what a registration of a version is that was registered before: a person's return to it, or the same
    policy under another report.
    """

    version: str
    registered: str
    policy: str
    sft: str
    rows: int | None
    suites: dict[str, dict[str, MetricComparison]]
    before: Literal["", "return", "again"] = ""

    @property
    def name(self) -> str:
        """The registration as a person reads it."""
        lead, tail = {"": ("", ""), "return": ("return to ", ""), "again": ("", " again")}[self.before]
        return f"{lead}version {self.version}{tail}"


@dataclass(frozen=True)
class Point:
    """A registration's value of a metric; places are in per cent from left and top, None if it was not measured."""

    name: str
    at: float
    policy: float | None
    sft: float | None
    value: str
    baseline: str
    difference: str
    verdict: str


@dataclass(frozen=True)
class Course:
    """One suite's main metric over versions: `line` and `baseline` are SVG paths on a plane of 100 by 100, empty below
    two versions, and `dots` and `baseline_dots` the versions on them."""

    title: str
    metric: str
    low: str
    high: str
    line: str
    baseline: str
    dots: str
    baseline_dots: str
    points: list[Point]


def history_page(recipe: str, model: str, versions: Sequence[Version], worth: Worth | None = None) -> str:
    """The HTML text; registrations oldest first. `worth` is what is known of the trainings beside their reports."""
    return render(
        "history.html.jinja",
        recipe=recipe,
        model=model,
        versions=versions,
        distinct=len({version.version for version in versions}),
        courses=courses(versions),
        day=day,
        worth=worth or Worth(),
    )


def courses(versions: Sequence[Version]) -> list[Course]:
    """A course for every suite that some version was measured on, in order of first appearance."""
    suites = dict.fromkeys(suite for version in versions for suite in version.suites)
    return [_course(suite, versions) for suite in suites]


def _course(suite: str, versions: Sequence[Version]) -> Course:
    metric = next(headline(suite, version.suites[suite]) for version in versions if suite in version.suites)
    comparisons = [version.suites.get(suite, {}).get(metric) for version in versions]
    measured = [comparison for comparison in comparisons if comparison is not None]
    unit = unit_of(measured[-1].width)
    values = [value for comparison in measured for value in (comparison.baseline, comparison.candidate)]
    low, high = axis(min(values), max(values), measured[-1].width)

    def across(index: int) -> float:
        return 50.0 if len(versions) == 1 else round(100 * index / (len(versions) - 1), 2)

    def down(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return round((100 - USED_HEIGHT) / 2 + USED_HEIGHT * (1 - share), 2)

    points = [
        Point(
            name=version.name,
            at=across(index),
            policy=None if comparison is None else down(comparison.candidate),
            sft=None if comparison is None else down(comparison.baseline),
            value="not measured" if comparison is None else unit.format(comparison.candidate) + unit.sign,
            baseline="–" if comparison is None else unit.format(comparison.baseline) + unit.sign,
            difference="–" if comparison is None else unit.format(comparison.difference, "+"),
            verdict="" if comparison is None else comparison.verdict,
        )
        for index, (version, comparison) in enumerate(zip(versions, comparisons, strict=True))
    ]
    return Course(
        title=title_of(suite),
        metric=metric,
        low=unit.format(low) + unit.sign if high > low else "",
        high=unit.format(high) + unit.sign,
        line=_path([(point.at, point.policy) for point in points]),
        baseline=_path([(point.at, point.sft) for point in points]),
        dots=_dots([(point.at, point.policy) for point in points]),
        baseline_dots=_dots([(point.at, point.sft) for point in points]),
        points=points,
    )


def axis(low: float, high: float, width: float | None) -> tuple[float, float]:
    """The ends of an axis with these values: at least two margins apart, as less is no change that counts, and within a
    fraction's bounds."""
    more = max(0.0, 2 * margin_of(width) - (high - low)) / 2
    low, high = low - more, high + more
    if width == 1.0:
        shift = max(0.0, -low) - max(0.0, high - 1.0)
        low, high = max(0.0, low + shift), min(1.0, high + shift)
    return low, high


def _path(places: Sequence[tuple[float, float | None]]) -> str:
    known = [(x, y) for x, y in places if y is not None]
    return "M" + " L".join(f"{x:.2f} {y:.2f}" for x, y in known) if len(known) > 1 else ""


def _dots(places: Sequence[tuple[float, float | None]]) -> str:
    return " ".join(f"M{x:.2f} {y:.2f} h0" for x, y in places if y is not None)
