"""The processes of one training run, where there is more than one."""

from __future__ import annotations

from typing import TypeVar

Value = TypeVar("Value")


def gathered(value: Value, world_size: int) -> list[Value]:
    """Every process's value, by rank, in every process."""
    if world_size == 1:
        return [value]
    from accelerate.utils import gather_object

    found: list[Value] = gather_object([value])
    return found
