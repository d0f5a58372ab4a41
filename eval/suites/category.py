"""The category of an item, as published data name it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def category_of(item: Mapping[str, Any]) -> str | None:
    """A name, None without one. BeaverTails marks each of its categories of harm true or false: those that are true,
    in order of the alphabet."""
    given = item.get("category")
    if isinstance(given, dict):
        return ", ".join(sorted(name for name, marked in given.items() if marked)) or None
    return str(given) if given else None
