"""One way of grading: what a judge is asked about an answer, and what its verdicts are worth."""

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
"""Judgments by question, turn and game."""

NEEDS_REFERENCE = ("math", "reasoning", "coding")
"""MT-Bench's categories that are judged against a reference where there is one."""
FIRST, SECOND = 1, 2


class Grading(ABC):
    """`metrics` it measures, `prompts` it needs, and the `games` of each turn: 0 alone, 1 and 2 a pair both ways."""

    metrics: tuple[str, ...]
    prompts: tuple[str, ...]
    games: tuple[int, ...]

    @abstractmethod
    def questions(self, item: Item, response: Response, prompts: Prompts, references: References) -> list[Question]:
        """One question for every turn and game of an item."""

    @abstractmethod
    def samples(self, suite: Suite, answered: Answered, verdicts: Verdicts) -> list[Sample]:
        """A row for every metric and `ids`; its value is None where a verdict is missing or cannot be read."""

    def ids(self, suite: Suite, item: Item, metric: str) -> list[str]:
        """The ids of an item's rows in one metric."""
        return [item.id]

    def intervals(self, samples: Sequence[Sample], verdicts: Verdicts) -> dict[str, tuple[float, float]]:
        """95 % intervals of metrics that have one of their own making."""
        return {}


def places(grading: Grading, suite: Suite, item: Item) -> list[tuple[str, int, int]]:
    """The judgments that an item should have: question, turn and game."""
    return [(item.id, turn, game) for turn in range(1, suite.turns + 1) for game in grading.games]


def prompt_name(plain: str, reference: str, item: Item, references: References, turn: int) -> str:
    """The prompt for a turn: with a reference where the category is judged by one that is there."""
    base = reference if reference_of(item, references) else plain
    return base if turn == FIRST else base + MULTI_TURN


def reference_of(item: Item, references: References) -> tuple[str, ...]:
    return references.get(item.id, ()) if item.fields.get("category") in NEEDS_REFERENCE else ()


def common_words(item: Item, references: References) -> dict[str, str]:
    """FastChat's names for the user's turns and the reference's."""
    words = {"question": item.fields["turns"][0]}
    words |= {f"question_{turn}": text for turn, text in enumerate(item.fields["turns"], start=1)}
    return words | {f"ref_answer_{turn}": text for turn, text in enumerate(reference_of(item, references), start=1)}


# A judge with what it is to judge: asked about answers, it gives judgments, and what they are worth.


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
        intervals: dict[str, tuple[float, float]] = {}
        for grading in self.gradings:
            intervals |= grading.intervals(samples, verdicts)
        return intervals


def by_place(judgments: Sequence[Judgment]) -> Verdicts:
    return {judgment.place: judgment for judgment in judgments}
