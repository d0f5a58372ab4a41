"""How far a long stage is: the line that it logs, and the time that is left by the lines seen so far."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

PERIOD = 5.0
"""Seconds between two lines of one loop."""
CURVES = Path("trainer") / "curves.jsonl"
"""The file in a stage's work folder to which its trainer appends a JSON line of numbers now and then, with the `step`.
Whoever runs the stage may read it meanwhile; nothing is made from it."""
PLACE = re.compile(r"(?:^|\s)(?P<done>\d+)(?:/| of )(?P<total>\d+)\b")
MOVING = "\r"
"""Begins a line for a person that the next line takes the place of, where a terminal can do that."""


class ProgressLog:
    """Logs `WHAT: N of TOTAL` now and then while a loop works. Nothing is logged by a loop that takes no time.

    Safe to share between threads.
    """

    def __init__(self, log: logging.Logger, what: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.log, self.what, self.total, self.clock = log, what, total, clock
        self.done = 0
        self._said = clock()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """`count` more are done."""
        with self._lock:
            self.done += count
            if (now := self.clock()) - self._said >= PERIOD:
                self._said = now
                self.log.info("%s: %d of %d", self.what, self.done, self.total)


def place_of(message: str) -> tuple[int, int] | None:
    """How many of how many a line says are done (`step 688/828, …`, `judge: 3 of 80`); None for other lines."""
    found = PLACE.search(message)
    if found is None:
        return None
    done, total = int(found["done"]), int(found["total"])
    return (done, total) if 0 <= done <= total and total > 0 else None


class Pace:
    """The time left of one stage, from the first and the latest of its lines."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._last = (0, 0)

    def left(self, done: int, total: int, at: float) -> float | None:
        """Seconds until `total`, when `done` are done at the time `at`; None before two lines tell a pace."""
        if self._first is None or total != self._last[1] or done < self._last[0]:
            self._first = (done, at)  # another loop
        self._last = (done, total)
        before, began = self._first
        return None if done <= before or at <= began else (at - began) * (total - done) / (done - before)


def duration(seconds: float) -> str:
    """A time for a person: 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
