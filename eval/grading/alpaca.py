"""AlpacaEval (Li et al. 2023): the win rate against a baseline's outputs, plain and controlled for length."""

from __future__ import annotations

from eval.grading.grading import Answered, Verdicts
from eval.grading.length_control import length_controlled
from eval.grading.pairs import BASELINE, PAIR, WIN_RATE, Pairs, pair_detail, won
from eval.samples import Sample
from eval.suites.suite import Item, Suite

CONTROLLED = "length_controlled_win_rate"
DIFFICULTY = "instruction_difficulty"


class Alpaca(Pairs):
    """Both orders are asked, where the published annotators draw one; lengths are in characters, as published."""

    metrics = (WIN_RATE, CONTROLLED)
    prompts = (PAIR,)
    reference = PAIR

    def samples(self, suite: Suite, answered: Answered, verdicts: Verdicts) -> list[Sample]:
        points = {item.id: won(verdicts, item, 1) for item, _ in answered}
        judged = [(item, response.turns[0]) for item, response in answered if points[item.id] is not None]
        values: dict[str, float] = {}
        if judged:
            preferences = [value for item, _ in judged if (value := points[item.id]) is not None]
            longer = [len(item.fields[BASELINE][0]) - len(answer) for item, answer in judged]
            controlled = length_controlled(preferences, longer, _difficulty([item for item, _ in judged]))
            values = dict(zip((item.id for item, _ in judged), controlled.values, strict=True))
        found = []
        for metric, of in ((WIN_RATE, points), (CONTROLLED, values)):
            for item, response in answered:
                answer = response.turns[0]
                about = pair_detail(
                    verdicts, item, 1, length=len(answer), baseline_length=len(item.fields[BASELINE][0])
                )
                found.append(Sample(suite.name, item.id, item.id, metric, of.get(item.id), answer, about))
        return found


def _difficulty(items: list[Item]) -> list[float] | None:
    """The items' difficulty, where the data gives every one."""
    given = [item.fields.get(DIFFICULTY) for item in items]
    numbers = [float(value) for value in given if isinstance(value, int | float) and not isinstance(value, bool)]
    return numbers if len(numbers) == len(items) else None


ALPACA = Alpaca()
