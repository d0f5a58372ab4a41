"""A suite's items from the Hugging Face Hub."""

from __future__ import annotations

from alignment.data.hub import hub_records
from alignment.recipe import DataSource
from eval.jsonl import Row
from eval.suites.subsets import SUBSET
from eval.suites.suite import Suite


def hub_rows(suite: Suite, source: DataSource) -> list[Row]:
    """The rows of a pinned split, of the task's own configuration where `config` is None. Of a group of tasks these are
    the rows of every task's own, with its name.

    Raises `BadInput` when the hub cannot be read.
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
