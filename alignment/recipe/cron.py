"""Standard cron expressions: minute, hour, day of month, month, day of week.

Numbers, names of months and weekdays, `*`, lists, ranges and steps; no seconds, no `@daily`, no extensions, so
that every scheduler reads the same times in it.
"""

from __future__ import annotations

import re

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS = ("minute", "hour", "day of month", "month", "day of week")
BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
NAMES: tuple[dict[str, int], ...] = (
    {},
    {},
    {},
    {name: n for n, name in enumerate(MONTHS, 1)},
    {name: n for n, name in enumerate(WEEKDAYS)},
)
LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
PART = re.compile(r"(?:(?P<all>\*)|(?P<first>[a-z0-9]+)(?:-(?P<last>[a-z0-9]+))?)(?:/(?P<step>\d+))?")


def check_cron(expression: str) -> str:
    """The expression, its blanks made single; raises `ValueError` that names the field that is wrong."""
    parts = expression.split()
    if len(parts) != len(FIELDS):
        raise ValueError(f"a cron expression has five fields ({', '.join(FIELDS)}), this has {len(parts)}")
    values = [_values(index, part) for index, part in enumerate(parts)]
    days, months = values[2], values[3]
    if parts[4] == "*" and not any(min(days) <= LONGEST[month - 1] for month in months):
        raise ValueError(f"no month in '{parts[3]}' has a day '{parts[2]}'")
    return " ".join(parts)


def _values(index: int, part: str) -> set[int]:
    """The numbers that one field stands for."""
    low, high = BOUNDS[index]
    found: set[int] = set()
    for one in part.lower().split(","):
        match = PART.fullmatch(one)
        if match is None or (match["step"] is not None and (int(match["step"]) == 0 or match["last"] is match["all"])):
            raise ValueError(f"{FIELDS[index]} '{part}' is not a number, a range, a list, or a step of * or of a range")
        first = low if match["all"] else _number(index, match["first"])
        last = high if match["all"] else _number(index, match["last"]) if match["last"] else first
        if not low <= first <= last <= high:
            raise ValueError(f"{FIELDS[index]} '{part}' is not within {low}-{high}, lowest first")
        found.update(range(first, last + 1, int(match["step"] or 1)))
    return found


def _number(index: int, text: str) -> int:
    if text in NAMES[index]:
        return NAMES[index][text]
    if not text.isdecimal():
        raise ValueError(f"{FIELDS[index]} has no '{text}'")
    return int(text)
