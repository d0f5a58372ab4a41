"""A suite's items: read from its published file form or generated, checked, and sampled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from alignment.errors import BadInput
from eval.jsonl import Row, check_text, read_pinned_rows, read_rows
from eval.suites.hub import hub_rows
from eval.suites.instructions import check_instructions
from eval.suites.spec import SuiteSpec
from eval.suites.suite import Item, Suite


def load_items(suite: Suite, spec: SuiteSpec, seed: int) -> list[Item]:
    """All items of a suite in their file's order, before any limit."""
    given = [source for source in (spec.data, spec.hub, spec.embedded) if source is not None]
    if len(given) != 1:
        problem = f"suite {suite.name} needs either a data file or embedded items (or, of lm-eval's tasks, the hub)"
        raise BadInput(problem, field=f"evals.{suite.name}.data")
    if spec.data is not None:
        return check_items(suite, read_pinned_rows(spec.data), spec.data.url)
    if spec.hub is not None:
        return check_items(suite, hub_rows(suite, spec.hub), str(spec.hub.hub))
    from alignment.quickstart.records import suite_items

    rows = enumerate(suite_items(suite.name, seed), start=1)
    return check_items(suite, rows, f"embedded {suite.name} items")


def read_items(suite: Suite, path: str | Path) -> list[Item]:
    """All items of a data file in the suite's published form."""
    return check_items(suite, read_rows(path), str(path))


def check_items(suite: Suite, rows: Iterable[Row], file: str) -> list[Item]:
    """Records as items; raises `BadInput` for a missing field (of a task of lm-eval: one that the first item has), a
    wrong type, an id that stands twice, or instructions that the suite's scorer does not know."""
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
        if not suite.fields and columns - set(record):  # a task of lm-eval: its items tell their own form
            missing = min(columns - set(record))
            raise BadInput(f"not a {suite.title} item: missing", file=file, row=row, field=missing)
        if "turns" in suite.fields and not _are_turns(record["turns"], suite.turns):
            raise BadInput(f"expected {suite.turns} turns of text", file=file, row=row, field="turns")
        name = str(index) if suite.id_field is None else str(record[suite.id_field])
        if name in seen:
            raise BadInput(f"id {name} stands twice", file=file, row=row, field=suite.id_field)
        seen.add(name)
        if suite.distinct is not None:
            if record[suite.distinct] in values:
                continue
            values.add(record[suite.distinct])
        if "instruction_id_list" in suite.fields:
            check_instructions(name, record, file, row)
        items.append(Item(name, record))
    if not items:
        raise BadInput(f"no {suite.title} items", file=file)
    return items


def sample_positions(items: Sequence[Item], limit: int | None, seed: int) -> list[int]:
    """Positions of the items to ask, in order: all, or the `limit` with the lowest hash of (seed, id).

    A larger limit keeps every item of a smaller one, and an item's luck does not depend on the others.
    """
    if limit is None or limit >= len(items):
        return list(range(len(items)))
    ranked = sorted(range(len(items)), key=lambda i: hashlib.sha256(f"{seed}\n{items[i].id}".encode()).digest())
    return sorted(ranked[:limit])


def _are_turns(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(turn, str) for turn in value)
