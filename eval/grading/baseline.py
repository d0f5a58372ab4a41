"""The baseline's answers, laid beside the items they answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from alignment.errors import BadInput
from eval.answer_files import parse_answers
from eval.grading.pairs import BASELINE
from eval.jsonl import Row
from eval.suites.suite import Item, Suite

OWN = "output"
"""AlpacaEval's data file brings a baseline's answer with each instruction."""


def with_baseline(suite: Suite, items: Sequence[Item], rows: Iterable[Row] | None, file: str) -> list[Item]:
    """Items with the baseline's turns: from a file of answers, or for AlpacaEval (`rows` None) from its data.

    The file may answer more than these items. Raises `BadInput` naming the first item without a whole answer.
    """
    answers = {}
    if rows is not None:
        answers = {one.id: one.turns for one in parse_answers(rows, file, items, more=True) if one.failed is None}
    elif suite.name == "alpaca_eval":
        texts = {item.id: item.fields.get(OWN) for item in items}
        answers = {name: (text,) for name, text in texts.items() if isinstance(text, str)}
    found = []
    for item in items:
        turns = answers.get(item.id, ())
        if len(turns) < suite.turns:
            raise BadInput(f"no whole answer of the baseline to item {item.id}", file=file)
        found.append(replace(item, fields=item.fields | {BASELINE: list(turns)}))
    return found
