"""Answers in the files that benchmarks publish them in, matched with a suite's items."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from alignment.errors import BadInput
from eval.jsonl import Row, read_rows
from eval.response_files import Response, parse_responses
from eval.suites.suite import Item

MODEL_FIELDS = ("model_id", "generator", "model")


def read_answers(path: str | Path, items: Sequence[Item]) -> list[Response]:
    """Answers by item, in the file's order; see `parse_answers`."""
    return parse_answers(read_rows(path), str(path), items)


def parse_answers(rows: Iterable[Row], file: str, items: Sequence[Item], more: bool = False) -> list[Response]:
    """Answers as `{"id", "turns"}`, in FastChat's form, in AlpacaEval's (`instruction`, `output`; the k-th one of an
    instruction is of the k-th item that has it), or in either of Arena-Hard's.

    Raises `BadInput` naming a malformed row, an id that stands twice, or, unless there may be `more` answers than
    items, an instruction that no item has.
    """
    by_instruction: dict[str, list[str]] = defaultdict(list)
    for item in reversed(items):
        by_instruction[str(item.fields.get("instruction"))].append(item.id)
    found = ((row, _common(record, by_instruction, file, row, more)) for row, record in rows)
    return parse_responses([(row, record) for row, record in found if record is not None], file)


def _common(
    record: dict[str, Any], ids: dict[str, list[str]], file: str, row: int, more: bool
) -> dict[str, Any] | None:
    if "instruction" in record and "output" in record:
        places = ids.get(str(record["instruction"]))
        if not places:
            if more:
                return None
            problem = "no item of the data file has this instruction, or none is left"
            raise BadInput(problem, file=file, row=row, field="instruction")
        return {"id": places.pop(), "turns": [record["output"]]}
    if "uid" in record and isinstance(record.get("messages"), list):
        return {"id": record["uid"], "turns": [_content(m) for m in record["messages"] if _is_assistant(m)]}
    return record


def _is_assistant(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant"


def _content(message: dict[str, Any]) -> Any:
    content = message.get("content")
    return content.get("answer") if isinstance(content, dict) else content


def model_name(path: str | Path) -> str:
    """Who answered, as the file's first record says; else the file's own name."""
    (_, first), *_ = read_rows(path) or [(0, {})]
    names = [first[name] for name in MODEL_FIELDS if isinstance(first.get(name), str)]
    return names[0] if names else Path(path).stem
