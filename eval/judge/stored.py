"""Judgments that were made before, as a file holds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignment.errors import BadInput
from eval.judge.judgment import Judgment
from eval.judge.judgment_files import read_judgments
from eval.suites.suite import Item


def stored_judgments(path: str | Path, items: Sequence[Item], turns: int) -> list[Judgment]:
    """The judgments in a FastChat file, all of answers alone or all of pairs.

    Raises `BadInput` naming the first judgment of a question or turn that the data file does not have, or of
    another kind than the first.
    """
    judgments = read_judgments(path)
    known = {item.id for item in items}
    for judgment in judgments:
        if judgment.question_id not in known:
            problem = f"question {judgment.question_id} is not in the data file"
            raise BadInput(problem, file=str(path), row=judgment.row, field="question_id")
        if not 1 <= judgment.turn <= turns:
            raise BadInput(f"turn {judgment.turn} of {turns}", file=str(path), row=judgment.row, field="turn")
        if bool(judgment.game) != bool(judgments[0].game):
            problem = "judgments of pairs and of answers alone in one file"
            raise BadInput(problem, file=str(path), row=judgment.row)
    return judgments


class StoredJudge:
    """Returns the stored judgments of the items it is asked about."""

    def __init__(self, judgments: Sequence[Judgment]) -> None:
        self.judgments = list(judgments)

    def __call__(self, answered: Sequence[tuple[Item, object]]) -> list[Judgment]:
        asked = {item.id for item, _ in answered}
        return [judgment for judgment in self.judgments if judgment.question_id in asked]
