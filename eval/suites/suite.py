"""What a suite is made of: the form of its items, the field's own task where there is one, its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StockTask:
    """One of lm-eval's tasks: its YAML below `lm_eval/tasks`, the split it tests on, its few-shot split."""

    name: str
    yaml: str
    split: str
    few_shot_split: str | None = None


@dataclass(frozen=True)
class Suite:
    """A suite by name.

    `fields` are the keys an item must have and their types. An item's id is `id_field`, or its row
    index in the data file where that is None. `task` is None for a suite that a judge grades: its items
    have `turns`, what the user says, one text each. `prepare` brings a published record into that form. Where
    `distinct` names a field, only the first record with each value of it is an item.
    """

    name: str
    title: str
    fields: Mapping[str, type]
    id_field: str | None
    metrics: tuple[str, ...]
    task: StockTask | None
    scale: tuple[float, float] = (0.0, 1.0)
    turns: int = 1
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    distinct: str | None = None


@dataclass(frozen=True)
class Item:
    """One item: `fields` as published, and the id that its responses and samples carry."""

    id: str
    fields: dict[str, Any]
