"""The rubric judge: deterministic checks that an embedded question carries itself. For embedded questions only.

An item's `rubric` is a list with one entry per turn, each a list of checks `{"kind", "value"}`. The
rating is 1 + 9 × the share of checks passed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from alignment.errors import BadInput
from eval.answers.files import Response
from eval.judge.judgment import HIGHEST, LOWEST, RUBRIC_PROMPT, Judgment
from eval.suites.suite import Item

NAME = "rubric"

CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "equals": lambda text, value: text == str(value),
    "contains": lambda text, value: all(part in text for part in _parts(value)),
    "regex": lambda text, value: re.search(str(value), text) is not None,
    "starts_with": lambda text, value: text.startswith(str(value)),
    "ends_with": lambda text, value: text.endswith(str(value)),
    "max_words": lambda text, value: bool(text) and len(text.split()) <= int(value),
}
"""Each takes the answer without surrounding white space. `contains` takes a text, or a list that must all be there."""


def rubric_judge(answered: Sequence[tuple[Item, Response]]) -> list[Judgment]:
    """A judgment per item and turn; raises `BadInput` for an item without a rubric it can apply."""
    return [
        _judge(item, turn, answer, checks)
        for item, response in answered
        for turn, (answer, checks) in enumerate(zip(response.turns, _rubric(item), strict=True), start=1)
    ]


def rubric_rating(answer: str, checks: Sequence[dict[str, Any]]) -> float:
    """From 1 (no check passes) to 10 (all pass), in even steps."""
    return LOWEST + (HIGHEST - LOWEST) * sum(_passes(answer, check) for check in checks) / len(checks)


def _judge(item: Item, turn: int, answer: str, checks: Sequence[dict[str, Any]]) -> Judgment:
    lines = [
        f"{'passed' if _passes(answer, check) else 'failed'}: {check['kind']} {check['value']!r}" for check in checks
    ]
    rating = f"Rating: [[{rubric_rating(answer, checks):.6g}]]"
    return Judgment(item.id, turn, NAME, RUBRIC_PROMPT, item.fields["turns"][turn - 1], "\n".join([rating, *lines]))


def _rubric(item: Item) -> list[list[dict[str, Any]]]:
    rubric, turns = item.fields.get("rubric"), item.fields["turns"]
    if not isinstance(rubric, list) or len(rubric) != len(turns):
        raise BadInput(f"question {item.id} has no rubric per turn; the rubric judge grades embedded questions only")
    for checks in rubric:
        if not isinstance(checks, list) or not checks:
            raise BadInput(f"question {item.id}: a turn's rubric is a list of at least one check")
        for check in checks:
            if not isinstance(check, dict) or check.get("kind") not in CHECKS or "value" not in check:
                raise BadInput(f"question {item.id}: not a check: {check!r}; kinds are {', '.join(CHECKS)}")
    return rubric


def _passes(answer: str, check: dict[str, Any]) -> bool:
    return CHECKS[check["kind"]](answer.strip(), check["value"])


def _parts(value: Any) -> list[str]:
    return [str(part) for part in value] if isinstance(value, list) else [str(value)]
