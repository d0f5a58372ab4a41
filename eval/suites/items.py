"""A suite's items: read from its published file form or generated, checked, and sampled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from alignment.data.embedded import embedded
from alignment.data.hub import hub_records
from alignment.errors import BadInput
from alignment.recipe.data import DataSource
from eval.suites.lm_eval_task import instruction_classes
from eval.suites.lm_eval_tasks import SUBSET, seeded
from eval.suites.rows import Row, check_text, read_pinned_rows, read_rows
from eval.suites.suite import Item, Suite, SuiteSpec

# A suite's items from the Hugging Face Hub.


def hub_rows(suite: Suite, source: DataSource) -> list[Row]:
    """The rows of a pinned split, from the task's own configuration if `config` is None.

    For a group of tasks these are the rows of all the tasks' configurations, each with its configuration's name under
    `subset`. Raises `BadInput` if the hub cannot be read.
    """
    if source.config is None and suite.task is not None:
        source = source.model_copy(update={"config": suite.task.subset})
    subsets = [task.subset for task in suite.members.values() if task.subset]
    if source.config is not None or not subsets:
        return [(record.source_row, dict(record.value)) for record in hub_records(source)]
    rows: list[Row] = []
    for subset in subsets:
        for record in hub_records(source.model_copy(update={"config": subset})):
            rows.append((len(rows) + 1, {**record.value, SUBSET: subset}))
    return rows


# IFEval's instructions are checked before anything is asked; lm-eval would find an error only while scoring.

TEXT_LISTS = frozenset({"keywords", "forbidden_words"})


def check_instructions(suite: Suite, item: str, record: dict[str, Any], file: str, row: int) -> None:
    """Raises `BadInput` that names the first instruction of an item that the checkers do not know or cannot build.

    The checkers are the suite's own, or lm-eval's for IFEval. `record` has a list under `instruction_id_list` and under
    `kwargs`; the i-th of one belongs to the i-th of the other.
    """
    kinds, settings = record["instruction_id_list"], record["kwargs"]
    known = instruction_classes() if suite.instructions is None else suite.instructions()
    whose = "lm-eval" if suite.instructions is None else suite.title
    if not kinds:
        raise BadInput(f"item {item}: no instructions", file=file, row=row, field="instruction_id_list")
    for kind in kinds:
        if not isinstance(kind, str) or kind not in known:
            problem = f"item {item}: {whose} has no instruction {kind!r}"
            raise BadInput(problem, file=file, row=row, field="instruction_id_list")
    if len(settings) != len(kinds):
        problem = f"item {item}: {len(settings)} for {len(kinds)} instructions"
        raise BadInput(problem, file=file, row=row, field="kwargs")
    for kind, values in zip(kinds, settings, strict=True):
        if not isinstance(values, dict):
            raise BadInput(f"item {item}, {kind}: expected an object", file=file, row=row, field="kwargs")
        wrong = _wrong_value(values) if suite.instructions is None else None
        wrong = wrong or _build_error(known[kind], kind, values)
        if wrong:
            raise BadInput(f"item {item}, {kind}: {wrong}", file=file, row=row, field="kwargs")


def _wrong_value(values: dict[str, Any]) -> str | None:
    """Why a value has the wrong type, or None. lm-eval accepts any value, and fails later, when it checks an answer."""
    for name, value in values.items():
        if value is None:
            continue
        if name in TEXT_LISTS:
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
        except Exception as error:  # code of another library: any error is caused by these values
            return str(error) or type(error).__name__
    return None


def load_items(suite: Suite, spec: SuiteSpec, seed: int) -> list[Item]:
    """All items of a suite, in the order of their file, before any limit; raises `BadInput`."""
    given = [source for source in (spec.data, spec.hub, spec.embedded) if source is not None]
    if len(given) != 1:
        problem = f"suite {suite.name} needs either a data file or embedded items (or, of lm-eval's tasks, the hub)"
        raise BadInput(problem, field=f"evals.{suite.name}.data")
    if spec.data is not None:
        return check_items(suite, read_pinned_rows(spec.data), spec.data.url)
    if spec.hub is not None:
        return check_items(suite, hub_rows(suite, spec.hub), str(spec.hub.hub))
    rows = enumerate(embedded(str(spec.embedded)).suite_items(suite.name, seed), start=1)
    return check_items(suite, rows, f"embedded {suite.name} items")


def read_items(suite: Suite, path: str | Path) -> list[Item]:
    """All items of a data file in the suite's published form; raises `BadInput`."""
    return check_items(suite, read_rows(path), str(path))


def check_items(suite: Suite, rows: Iterable[Row], file: str) -> list[Item]:
    """The items in records, each checked.

    Raises `BadInput` for a missing field (for a task of lm-eval: a field that the first item has), a wrong type, a
    repeated id, and instructions that the suite's scorer does not know.
    """
    items: list[Item] = []
    seen: set[str] = set()
    values: set[str] = set()
    columns: set[str] | None = None
    for index, (row, published) in enumerate(rows):
        check_text(published, file, row)
        record = suite.prepare(published) if suite.prepare else published
        for field, kind in suite.fields.items():
            if not isinstance(record.get(field), kind):
                problem = "missing" if field not in record else f"expected {kind.__name__}"
                raise BadInput(f"not a {suite.title} item: {problem}", file=file, row=row, field=field)
        columns = set(record) if columns is None else columns
        if not suite.fields and columns - set(record):  # a task of lm-eval: the first item defines the fields
            missing = min(columns - set(record))
            raise BadInput(f"not a {suite.title} item: missing", file=file, row=row, field=missing)
        if "turns" in suite.fields and not _are_turns(record["turns"], suite.turns):
            raise BadInput(f"expected {suite.turns} turns of text", file=file, row=row, field="turns")
        name = str(index) if suite.id_field is None else str(record[suite.id_field])
        if name in seen:
            raise BadInput(f"id {name} appears twice", file=file, row=row, field=suite.id_field)
        seen.add(name)
        if suite.distinct is not None:
            if record[suite.distinct] in values:
                continue
            values.add(record[suite.distinct])
        if "instruction_id_list" in suite.fields:
            check_instructions(suite, name, record, file, row)
        items.append(Item(name, record))
    if not items:
        raise BadInput(f"no {suite.title} items", file=file)
    return items


def sample_positions(items: Sequence[Item], limit: int | None, seed: int) -> list[int]:
    """Positions of the items to ask, in order: all, or the `limit` with the lowest hash of (seed, id).

    A larger limit keeps all items of a smaller limit, and an item's hash does not depend on other items.
    """
    if limit is None or limit >= len(items):
        return list(range(len(items)))
    ranked = sorted(range(len(items)), key=lambda i: hashlib.sha256(f"{seed}\n{items[i].id}".encode()).digest())
    return sorted(ranked[:limit])


def _are_turns(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(turn, str) for turn in value)
