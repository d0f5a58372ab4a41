"""A grading: the questions to a judge about an answer, and the scores of its verdicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from eval.answers.files import Response
from eval.judge.judgment import Judgment, Question
from eval.judge.prompts import MULTI_TURN, Prompts, References
from eval.suites.samples import Sample
from eval.suites.suite import Item, Suite

Answered = Sequence[tuple[Item, Response]]
Verdicts = Mapping[tuple[str, int, int], Judgment]
"""Judgments by question id, turn and game."""

NEEDS_REFERENCE = ("math", "reasoning", "coding")
"""MT-Bench's categories that are judged with a reference if there is one."""
FIRST, SECOND = 1, 2


class Grading(ABC):
    """How a judge grades the answers of a suite.

    `metrics` are the metrics that it measures and `prompts` the names of the prompts that it needs. `games` are those
    of each turn: 0 for a single answer; 1 and 2 for a pair in both orders.
    """

    metrics: tuple[str, ...]
    prompts: tuple[str, ...]
    games: tuple[int, ...]

    @abstractmethod
    def questions(self, item: Item, response: Response, prompts: Prompts, references: References) -> list[Question]:
        """A question for every turn and game of an item."""

    @abstractmethod
    def samples(self, suite: Suite, answered: Answered, verdicts: Verdicts) -> list[Sample]:
        """A sample for every metric and id of the items; its value is None if a verdict is missing or cannot be
        read."""

    def ids(self, suite: Suite, item: Item, metric: str) -> list[str]:
        """The ids of an item's samples in a metric."""
        return [item.id]

    def intervals(self, samples: Sequence[Sample], verdicts: Verdicts) -> dict[str, tuple[float, float]]:
        """95 % intervals (low, high) of metrics whose interval the grading computes itself."""
        return {}


def places(grading: Grading, suite: Suite, item: Item) -> list[tuple[str, int, int]]:
    """The judgments that an item should have: question id, turn and game."""
    return [(item.id, turn, game) for turn in range(1, suite.turns + 1) for game in grading.games]


def prompt_name(plain: str, reference: str, item: Item, references: References, turn: int) -> str:
    """The name of a turn's prompt: `reference` if the item is judged with a reference, else `plain`."""
    base = reference if reference_of(item, references) else plain
    return base if turn == FIRST else base + MULTI_TURN


def reference_of(item: Item, references: References) -> tuple[str, ...]:
    """The reference's turns for an item; empty if there is none, or if its category is judged without one."""
    return references.get(item.id, ()) if item.fields.get("category") in NEEDS_REFERENCE else ()


def common_words(item: Item, references: References) -> dict[str, str]:
    """The user's turns and the reference's, under FastChat's names for a prompt's placeholders."""
    words = {"question": item.fields["turns"][0]}
    words |= {f"question_{turn}": text for turn, text in enumerate(item.fields["turns"], start=1)}
    return words | {f"ref_answer_{turn}": text for turn, text in enumerate(reference_of(item, references), start=1)}


# A judge with its gradings: it takes answers, and gives judgments and samples.


@dataclass(frozen=True)
class Grader:
    """A judge with its gradings.

    `judge` takes items with whole answers and returns at most one judgment for each place (question id, turn, game).
    """

    gradings: tuple[Grading, ...]
    judge: Callable[[Answered], list[Judgment]]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of all gradings."""
        return tuple(metric for grading in self.gradings for metric in grading.metrics)

    def places(self, suite: Suite, item: Item) -> list[tuple[str, int, int]]:
        """The judgments that an item should have, over all gradings."""
        return [place for grading in self.gradings for place in places(grading, suite, item)]

    def samples(self, suite: Suite, answered: Answered, judgments: Sequence[Judgment]) -> list[Sample]:
        """The samples of all gradings; see `Grading.samples`."""
        verdicts = by_place(judgments)
        return [sample for grading in self.gradings for sample in grading.samples(suite, answered, verdicts)]

    def ids(self, suite: Suite, item: Item) -> list[tuple[str, str]]:
        """Metric and id of every sample of an item."""
        return [
            (metric, name)
            for grading in self.gradings
            for metric in grading.metrics
            for name in grading.ids(suite, item, metric)
        ]

    def intervals(self, samples: Sequence[Sample], judgments: Sequence[Judgment]) -> dict[str, tuple[float, float]]:
        """The intervals of all gradings; see `Grading.intervals`."""
        verdicts = by_place(judgments)
        intervals: dict[str, tuple[float, float]] = {}
        for grading in self.gradings:
            intervals |= grading.intervals(samples, verdicts)
        return intervals


def by_place(judgments: Sequence[Judgment]) -> Verdicts:
    """Judgments by their place: question id, turn and game."""
    return {judgment.place: judgment for judgment in judgments}
