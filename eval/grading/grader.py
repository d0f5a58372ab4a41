"""A judge with what it is to judge: asked about answers, it gives judgments, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval.grading.grading import Answered, Grading, Verdicts, places
from eval.judge.judgment import Judgment
from eval.samples import Sample
from eval.suites.suite import Item, Suite


@dataclass(frozen=True)
class Grader:
    """`judge` takes items with whole answers and returns at most one judgment for each of their places."""

    gradings: tuple[Grading, ...]
    judge: Callable[[Answered], list[Judgment]]

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(metric for grading in self.gradings for metric in grading.metrics)

    def places(self, suite: Suite, item: Item) -> list[tuple[str, int, int]]:
        """The judgments an item should have."""
        return [place for grading in self.gradings for place in places(grading, suite, item)]

    def samples(self, suite: Suite, answered: Answered, judgments: Sequence[Judgment]) -> list[Sample]:
        verdicts = by_place(judgments)
        return [sample for grading in self.gradings for sample in grading.samples(suite, answered, verdicts)]

    def ids(self, suite: Suite, item: Item) -> list[tuple[str, str]]:
        """Metric and id of every row of an item."""
        return [
            (metric, name)
            for grading in self.gradings
            for metric in grading.metrics
            for name in grading.ids(suite, item, metric)
        ]

    def intervals(self, samples: Sequence[Sample], judgments: Sequence[Judgment]) -> dict[str, tuple[float, float]]:
        verdicts = by_place(judgments)
        found: dict[str, tuple[float, float]] = {}
        for grading in self.gradings:
            found |= grading.intervals(samples, verdicts)
        return found


def by_place(judgments: Sequence[Judgment]) -> Verdicts:
    return {judgment.place: judgment for judgment in judgments}
