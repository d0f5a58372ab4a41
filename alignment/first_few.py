"""Long lists in one line for a person."""

from __future__ import annotations

from collections.abc import Sequence

NAMED = 5


def first_few(names: Sequence[str], between: str = ", ") -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMED
    return between.join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
