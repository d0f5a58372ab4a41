"""Holm's correction: several claims at once, each as safe as one alone (Holm 1979)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Adjusted p-values in the given order: the chance of any false claim is held by claiming those below the level.

    The smallest of m is multiplied by m, the next by m − 1, and so on; none is smaller than the one before it.
    """
    adjusted: dict[Name, float] = {}
    reached = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda one: p_values[one])):
        reached = max(reached, min(1.0, p_values[name] * (len(p_values) - rank)))
        adjusted[name] = reached
    return {name: adjusted[name] for name in p_values}
