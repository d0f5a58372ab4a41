"""IFEval's instructions, checked before anything is asked: what lm-eval would only find while it scores."""

from __future__ import annotations

from typing import Any

from alignment.errors import BadInput
from eval.lm_eval_calls import seeded
from eval.lm_eval_task import instruction_classes

TEXTS = frozenset({"keywords", "forbidden_words"})


def check_instructions(item: str, record: dict[str, Any], file: str, row: int) -> None:
    """Raises `BadInput` naming the first instruction of an item that lm-eval does not know or cannot build.

    `record` has a list under `instruction_id_list` and under `kwargs`; the i-th of one belongs to the i-th
    of the other.
    """
    kinds, settings = record["instruction_id_list"], record["kwargs"]
    known = instruction_classes()
    if not kinds:
        raise BadInput(f"item {item}: no instructions", file=file, row=row, field="instruction_id_list")
    for kind in kinds:
        if not isinstance(kind, str) or kind not in known:
            problem = f"item {item}: lm-eval has no instruction {kind!r}"
            raise BadInput(problem, file=file, row=row, field="instruction_id_list")
    if len(settings) != len(kinds):
        problem = f"item {item}: {len(settings)} for {len(kinds)} instructions"
        raise BadInput(problem, file=file, row=row, field="kwargs")
    for kind, values in zip(kinds, settings, strict=True):
        if not isinstance(values, dict):
            raise BadInput(f"item {item}, {kind}: expected an object", file=file, row=row, field="kwargs")
        wrong = _wrong_value(values) or _build_error(known[kind], kind, values)
        if wrong:
            raise BadInput(f"item {item}, {kind}: {wrong}", file=file, row=row, field="kwargs")


def _wrong_value(values: dict[str, Any]) -> str | None:
    """lm-eval takes any value when an instruction is built and trips over it when an answer is checked."""
    for name, value in values.items():
        if value is None:
            continue
        if name in TEXTS:
            if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
                return f"{name}: expected a list of texts"
        elif name.startswith("num_") or name.endswith("frequency") or name == "nth_paragraph":
            if isinstance(value, bool) or not isinstance(value, int | float):
                return f"{name}: expected a number"
        elif not isinstance(value, str):
            return f"{name}: expected a text"
    return None


def _build_error(instruction: Any, kind: str, values: dict[str, Any]) -> str | None:
    with seeded():
        try:
            instruction(kind).build_description(**{name: value for name, value in values.items() if value})
        except Exception as error:  # another library's code: whatever it raises, these values are the cause
            return str(error) or type(error).__name__
    return None
