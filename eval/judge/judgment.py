"""A judgment: what a judge wrote of one turn, and the rating that stands in it. FastChat's file form."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.errors import BadInput
from eval.jsonl import check_text, read_rows, write_records

LOWEST, HIGHEST = 1.0, 10.0
RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
RATING_FALLBACK = re.compile(r"\[(\d+\.?\d*)\]")


@dataclass(frozen=True)
class Judgment:
    """What a judge said of one turn (1-based) of one answer; the rating is always read from the text.

    `row` is where a stored one stands in its file.
    """

    question_id: str
    turn: int
    judge: str
    prompt_name: str
    user_prompt: str
    text: str
    model: str = ""
    row: int | None = field(default=None, compare=False)

    @property
    def score(self) -> float | None:
        return parse_rating(self.text)


def parse_rating(text: str) -> float | None:
    """The first `[[rating]]`, else the first `[rating]`, as FastChat reads it; None when that is no number 1 to 10."""
    match = RATING.search(text) or RATING_FALLBACK.search(text)
    if match is None:
        return None
    rating = float(match[1])
    return rating if LOWEST <= rating <= HIGHEST else None


def write_judgments(path: Path, judgments: Iterable[Judgment]) -> None:
    write_records(path, (judgment_record(judgment) for judgment in judgments))


def judgment_record(judgment: Judgment) -> dict[str, Any]:
    """The FastChat form; a rating that cannot be read is −1 there."""
    name = judgment.question_id
    return {
        "question_id": int(name) if name.isdecimal() else name,
        "model": judgment.model,
        "judge": [judgment.judge, judgment.prompt_name],
        "user_prompt": judgment.user_prompt,
        "judgment": judgment.text,
        "score": -1 if judgment.score is None else judgment.score,
        "turn": judgment.turn,
    }


def read_judgments(path: str | Path) -> list[Judgment]:
    """Single-answer judgments of one model; raises `BadInput` naming a malformed row, or one that stands twice."""
    judgments: dict[tuple[str, int], Judgment] = {}
    models: dict[str, None] = {}
    for row, record in read_rows(path):
        judgment = parse_judgment(record, str(path), row)
        place = (judgment.question_id, judgment.turn)
        if place in judgments:
            raise BadInput(f"question {place[0]} turn {place[1]} is judged twice", file=str(path), row=row)
        judgments[place] = judgment
        models[judgment.model] = None
    if len(models) > 1:
        raise BadInput(f"judgments of several models: {', '.join(models)}; give one model's", file=str(path))
    return list(judgments.values())


def parse_judgment(record: dict[str, Any], file: str, row: int) -> Judgment:
    check_text(record, file, row)
    for name, kind in {"question_id": (int, str), "turn": (int,), "judgment": (str,)}.items():
        if not isinstance(record.get(name), kind):
            problem = "not a single-answer judgment: missing or of the wrong type"
            raise BadInput(problem, file=file, row=row, field=name)
    judge = record.get("judge")
    names = [str(part) for part in judge] if isinstance(judge, list) and len(judge) == 2 else ["", ""]
    return Judgment(
        question_id=str(record["question_id"]),
        turn=record["turn"],
        judge=names[0],
        prompt_name=names[1],
        user_prompt=str(record.get("user_prompt", "")),
        text=record["judgment"],
        model=str(record.get("model", "")),
        row=row,
    )
