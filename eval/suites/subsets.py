"""Which items belong to which task of a group: MMLU's subjects, MATH's types of problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignment.errors import BadInput
from eval.suites.stock import slug
from eval.suites.suite import Item, StockTask, Suite

SUBSET = "subset"
COLUMNS = (SUBSET, "subject", "type", "config", "category", "task")
"""Where a data file may name the subset of an item; the first that does, for all items, is taken."""


def tasks_of(suite: Suite, items: Sequence[Item]) -> list[tuple[StockTask, list[int]]]:
    """The suite's tasks that have items, each with their positions.

    Raises `BadInput` when a group's items do not tell which of its tasks they belong to.
    """
    if suite.task is not None:
        return [(suite.task, list(range(len(items))))]
    names = subsets(suite, [item.fields for item in items])
    return [
        (task, positions)
        for subset, task in suite.members.items()
        if (positions := [position for position, name in enumerate(names) if name == subset])
    ]


def subsets(suite: Suite, records: Sequence[dict[str, Any]]) -> list[str]:
    """The subset each record names, in the group's own spelling."""
    named: dict[str, int] = {}
    for column in COLUMNS:
        names = [slug(str(record.get(column))) for record in records]
        wrong = next((row for row, name in enumerate(names) if name not in suite.members), None)
        if wrong is None:
            return names
        if wrong:
            named[column] = wrong
    if named:
        column, row = max(named.items(), key=lambda found: found[1])
        raise BadInput(f"{records[row].get(column)!r} is no subset of {suite.name}", row=row + 1, field=column)
    known = ", ".join(list(suite.members)[:3])
    raise BadInput(f"{suite.name} is a group of tasks: each item names its own ({known}, …) as {', '.join(COLUMNS)}")
