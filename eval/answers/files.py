"""Responses on disk: `{"id", "turns"}` or `{"id", "loglikelihoods"}` JSON lines, and FastChat's answer files."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.errors import BadInput
from eval.suites.rows import Row, check_text, read_rows, write_records
from eval.suites.suite import Item

RESPONSES_FILE = "responses.jsonl"
ITEMS_FILE = "items.jsonl"
"""The items of a suite as they were asked, in the order of the responses."""
SETTINGS_FILE = "generation.json"
"""How a suite's responses were generated."""


@dataclass(frozen=True)
class Response:
    """A model's answer to an item, turn by turn. `failed` says why an item has no whole answer.

    A multiple-choice item has `loglikelihoods` instead of turns: for each choice the log-likelihood in nats, and
    whether the choice is the greedy continuation. `tokens` counts the generated tokens of each turn, if they are known.
    `row` is the row of a stored response in its file.
    """

    id: str
    turns: tuple[str, ...]
    failed: str | None = None
    loglikelihoods: tuple[tuple[float, bool], ...] = ()
    tokens: tuple[int, ...] = ()
    row: int | None = field(default=None, compare=False)


def write_responses(path: Path, responses: Iterable[Response]) -> None:
    """Writes responses as JSON lines, in the given order."""
    write_records(path, (_record(response) for response in responses))


def _record(response: Response) -> dict[str, Any]:
    record: dict[str, Any] = {"id": response.id}
    if response.loglikelihoods:
        record["loglikelihoods"] = [list(pair) for pair in response.loglikelihoods]
    else:
        record["turns"] = list(response.turns)
    if response.tokens:
        record["tokens"] = list(response.tokens)
    return record if response.failed is None else record | {"failed": response.failed}


def read_responses(path: str | Path) -> list[Response]:
    """Responses by id, in the file's order; raises `BadInput` that names a malformed row or a repeated id."""
    return parse_responses(read_rows(path), str(path))


def parse_responses(rows: Iterable[Row], file: str) -> list[Response]:
    """The responses in records, in their order; raises as `read_responses`."""
    responses: dict[str, Response] = {}
    for row, record in rows:
        response = _parse(record, file, row)
        if response.id in responses:
            raise BadInput(f"id {response.id} appears twice", file=file, row=row)
        responses[response.id] = response
    if not responses:
        raise BadInput("no responses", file=file)
    return list(responses.values())


def _parse(record: dict[str, Any], file: str, row: int) -> Response:
    if "choices" in record:  # FastChat's answer file
        name, choices = record.get("question_id"), record["choices"]
        first = choices[0] if isinstance(choices, list) and choices else None
        turns = first.get("turns") if isinstance(first, dict) else None
        if isinstance(turns, list):  # Arena-Hard's have each turn's text under "content"
            turns = [turn.get("content") if isinstance(turn, dict) else turn for turn in turns]
    else:
        name, turns = record.get("id"), record.get("turns")
    failed = record.get("failed")
    check_text({"id": name, "turns": turns, "failed": failed}, file, row)
    if isinstance(name, bool) or not isinstance(name, int | str):
        seen = "it is missing" if name is None else f"it is {str(name)[:40]}"
        raise BadInput(f"expected an id, a whole number or a text; {seen}", file=file, row=row, field="id")
    if "loglikelihoods" in record:
        return Response(str(name), (), None, _loglikelihoods(record["loglikelihoods"], str(name), file, row), (), row)
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise BadInput(f"response {name}: expected a list of texts", file=file, row=row, field="turns")
    if failed is None and not turns:
        raise BadInput(f"response {name}: no turns", file=file, row=row, field="turns")
    counts = record.get("tokens")
    known = isinstance(counts, list) and len(counts) == len(turns) and all(type(count) is int for count in counts)
    tokens = tuple(counts) if known and isinstance(counts, list) else ()
    return Response(str(name), tuple(turns), None if failed is None else str(failed), (), tokens, row)


def _loglikelihoods(value: Any, name: str, file: str, row: int) -> tuple[tuple[float, bool], ...]:
    def whole(pair: Any) -> bool:
        return (
            isinstance(pair, list)
            and len(pair) == 2
            and isinstance(pair[0], int | float)
            and not isinstance(pair[0], bool)
            and math.isfinite(pair[0])
            and isinstance(pair[1], bool)
        )

    if not isinstance(value, list) or not value or not all(whole(pair) for pair in value):
        problem = f"response {name}: expected a list of [log-likelihood, true or false], one for each choice"
        raise BadInput(problem, file=file, row=row, field="loglikelihoods")
    return tuple((float(number), greedy) for number, greedy in value)


def match_responses(
    items: Sequence[Item], responses: Sequence[Response], turns: int, file: str, id_field: str | None = None
) -> tuple[list[tuple[Item, Response]], list[str]]:
    """Items with their response, in the items' order, and the ids that have none. `turns` is 0 for log-likelihoods.
    `id_field` is the suite's.

    Raises `BadInput` that names a response with an unknown id, with too few turns, or with log-likelihoods in place of
    a text.
    """
    by_id = {response.id: response for response in responses}
    known = {item.id for item in items}
    for response in responses:
        if response.id not in known:
            form = "row index in the data file, counted from 0" if id_field is None else id_field
            problem = f"id {response.id} is not in the data file; expected is an item's {form}"
            if items:
                problem += f", such as {items[0].id}"
            raise BadInput(problem, file=file, row=response.row, field="id")
        if response.failed is None and bool(response.loglikelihoods) != (turns == 0):
            wanted = "turns" if turns else "loglikelihoods"
            problem = f"response {response.id}: expected {wanted}"
            raise BadInput(problem, file=file, row=response.row, field=wanted)
        if response.failed is None and len(response.turns) < turns:
            problem = f"response {response.id}: {len(response.turns)} of {turns} turns"
            raise BadInput(problem, file=file, row=response.row, field="turns")
    matched = [(item, by_id[item.id]) for item in items if item.id in by_id]
    return matched, [item.id for item in items if item.id not in by_id]


# Answer files in the forms that benchmarks publish, matched with a suite's items.

MODEL_FIELDS = ("model_id", "generator", "model")


def read_answers(path: str | Path, items: Sequence[Item]) -> list[Response]:
    """Answers by item, in the file's order; see `parse_answers`."""
    return parse_answers(read_rows(path), str(path), items)


def parse_answers(rows: Iterable[Row], file: str, items: Sequence[Item], more: bool = False) -> list[Response]:
    """Answers in any of these forms: `{"id", "turns"}`, FastChat's, AlpacaEval's or one of Arena-Hard's two.

    AlpacaEval's records have `instruction` and `output`. If several items share an instruction, its k-th answer belongs
    to the k-th of them. Raises `BadInput` that names a malformed row or a repeated id, and an instruction that no item
    has, unless the file may answer `more` than these items.
    """
    by_instruction: dict[str, list[str]] = defaultdict(list)
    for item in reversed(items):
        by_instruction[str(item.fields.get("instruction"))].append(item.id)
    records = ((row, _common(record, by_instruction, file, row, more)) for row, record in rows)
    return parse_responses([(row, record) for row, record in records if record is not None], file)


def _common(
    record: dict[str, Any], ids: dict[str, list[str]], file: str, row: int, more: bool
) -> dict[str, Any] | None:
    if "instruction" in record and "output" in record:
        places = ids.get(str(record["instruction"]))
        if not places:
            if more:
                return None
            problem = "no item has this instruction, or each item that has it is answered already"
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
    """The model's name in the file's first record; else the file's own name."""
    (_, first), *_ = read_rows(path) or [(0, {})]
    names = [first[name] for name in MODEL_FIELDS if isinstance(first.get(name), str)]
    return names[0] if names else Path(path).stem
