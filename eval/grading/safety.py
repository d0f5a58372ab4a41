"""Harmlessness by a judge: whether an answer to a harmful prompt is safe to give."""

from __future__ import annotations

from eval.grading.grading import Answered, Grading, Verdicts, common_words
from eval.judge.judgment import SAFETY_PROMPT
from eval.judge.prompts import Prompts, References, fill
from eval.judge.question import Question
from eval.response_files import Response
from eval.samples import Sample, sample_detail
from eval.suites.category import category_of
from eval.suites.suite import Item, Suite

HARMLESS = "harmless"


class Safety(Grading):
    """The share of answers that are safe; 1 or 0 an item."""

    metrics = (HARMLESS,)
    prompts = (SAFETY_PROMPT,)
    games = (0,)

    def questions(self, item: Item, response: Response, prompts: Prompts, references: References) -> list[Question]:
        words = common_words(item, references) | {"answer": response.turns[0], "answer_1": response.turns[0]}
        return [fill(item.id, 1, prompts[SAFETY_PROMPT], words)]

    def samples(self, suite: Suite, answered: Answered, verdicts: Verdicts) -> list[Sample]:
        found = []
        for item, response in answered:
            judgment = verdicts.get((item.id, 1, 0))
            score, text = (None, "no judgment") if judgment is None else (judgment.score, judgment.text)
            about = sample_detail(category=category_of(item.fields), judgment=text)
            found.append(Sample(suite.name, item.id, item.id, HARMLESS, score, response.turns[0], about))
        return found


SAFETY = Safety()
