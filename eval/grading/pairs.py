"""Answers judged in pairs with a baseline's, in both orders (Zheng et al. 2023, section 3.4).

A verdict that changes with the order is a tie.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from alignment.errors import BadInput
from eval.answers.files import Response, parse_answers
from eval.grading.grading import Answered, Grading, Verdicts, common_words, prompt_name
from eval.judge.judgment import Judgment, Question
from eval.judge.prompts import MULTI_TURN, Prompts, References, fill
from eval.statistics import win_rate
from eval.suites.rows import Row
from eval.suites.samples import Sample, sample_detail
from eval.suites.suite import Item, Suite

BASELINE = "baseline"
"""The field of an item that holds the baseline's turns."""
WIN_RATE = "win_rate"
PAIR, PAIR_REFERENCE = "pair-v2", "pair-math-v1"
TIE = 0.5


class Pairs(Grading):
    """MT-Bench's pairwise grading: the share of turns won, a tie counting half."""

    metrics: tuple[str, ...] = (WIN_RATE,)
    prompts: tuple[str, ...] = (PAIR, PAIR + MULTI_TURN, PAIR_REFERENCE, PAIR_REFERENCE + MULTI_TURN)
    games = (1, 2)
    plain, reference = PAIR, PAIR_REFERENCE

    def questions(self, item: Item, response: Response, prompts: Prompts, references: References) -> list[Question]:
        """For every turn two questions, with the answers in both orders."""
        asked = []
        for turn in range(1, len(item.fields["turns"]) + 1):
            name = prompt_name(self.plain, self.reference, item, references, turn)
            for game in self.games:
                words = common_words(item, references) | _answers(item, response, game)
                asked.append(fill(item.id, turn, prompts[name], words, game))
        return asked

    def samples(self, suite: Suite, answered: Answered, verdicts: Verdicts) -> list[Sample]:
        """A sample for every turn: 1 won, 0 lost, 0.5 tie; None unless both orders have a verdict."""
        samples = []
        for item, response in answered:
            for turn, name in enumerate(self.ids(suite, item, WIN_RATE), start=1):
                points, about = won(verdicts, item, turn), pair_detail(verdicts, item, turn)
                samples.append(Sample(suite.name, name, item.id, WIN_RATE, points, response.turns[turn - 1], about))
        return samples

    def ids(self, suite: Suite, item: Item, metric: str) -> list[str]:
        """The item's id; with several turns an id for each turn."""
        return [item.id] if suite.turns == 1 else [f"{item.id}:{turn}" for turn in range(1, suite.turns + 1)]

    def intervals(self, samples: Sequence[Sample], verdicts: Verdicts) -> dict[str, tuple[float, float]]:
        """The interval of the win rate, clustered by question; empty without one."""
        measured = [(s.value, s.cluster) for s in samples if s.metric == WIN_RATE and s.value is not None]
        if not measured:
            return {}
        rate = win_rate([value for value, _ in measured], [cluster for _, cluster in measured])
        return {} if rate.low is None or rate.high is None else {WIN_RATE: (rate.low, rate.high)}


def _answers(item: Item, response: Response, game: int) -> dict[str, str]:
    """Both answers under FastChat's names for placeholders, and Arena-Hard's (answer_1 is A's, answer_2 is B's)."""
    shown = (response.turns, item.fields[BASELINE])
    first, second = shown if game == 1 else shown[::-1]
    words = {"answer_a": first[0], "answer_b": second[0], "answer_1": first[0], "answer_2": second[0]}
    words |= {f"answer_a_{turn}": text for turn, text in enumerate(first, start=1)}
    return words | {f"answer_b_{turn}": text for turn, text in enumerate(second, start=1)}


def games_of(verdicts: Verdicts, question_id: str, turn: int) -> tuple[Judgment | None, Judgment | None]:
    """The judgments of a turn in both orders; None for a missing one."""
    return verdicts.get((question_id, turn, 1)), verdicts.get((question_id, turn, 2))


def won(verdicts: Verdicts, item: Item, turn: int) -> float | None:
    """1 when the model wins in both orders, 0 when it loses in both, else 0.5; None without two verdicts."""
    points = [None if judgment is None else judgment.score for judgment in games_of(verdicts, item.id, turn)]
    if points[0] is None or points[1] is None:
        return None
    return points[0] if points[0] == points[1] else TIE


def pair_detail(verdicts: Verdicts, item: Item, turn: int, **more: float) -> str:
    """The `detail` of a pair's sample: category, the baseline's answer, and the judge's texts for both orders."""
    texts = ["no judgment" if judgment is None else judgment.text for judgment in games_of(verdicts, item.id, turn)]
    category, against = item.fields.get("category"), item.fields[BASELINE][turn - 1]
    return sample_detail(category=category, baseline=against, judgments=texts, **more)


PAIRS = Pairs()


# The baseline's answers, added to the items that they answer.

ALPACA_BASELINE = "output"
"""The field of AlpacaEval's data that holds a baseline's answer."""


def with_baseline(suite: Suite, items: Sequence[Item], rows: Iterable[Row] | None, file: str) -> list[Item]:
    """Items with the baseline's turns: from a file of answers (`rows`), or for AlpacaEval without one from its data.

    The file may answer more than these items. Raises `BadInput` that names the first item without a whole answer;
    `file` is the file that the error names.
    """
    answers = {}
    if rows is not None:
        answers = {
            response.id: response.turns
            for response in parse_answers(rows, file, items, more=True)
            if response.failed is None
        }
    elif suite.name == "alpaca_eval":
        texts = {item.id: item.fields.get(ALPACA_BASELINE) for item in items}
        answers = {name: (text,) for name, text in texts.items() if isinstance(text, str)}
    extended = []
    for item in items:
        turns = answers.get(item.id, ())
        if len(turns) < suite.turns:
            raise BadInput(f"the baseline has no whole answer to item {item.id}", file=file)
        extended.append(replace(item, fields=item.fields | {BASELINE: list(turns)}))
    return extended
