"""What a campaign plants in a process of `align`: a death at a write, a clock that is off, a count of what is scored.

Each is asked for by a variable of the environment, and counts in the process and in what it forks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KILLED_AT, KILLED_ONCE = "KILLED_AT", "KILLED_ONCE"
"""The process that is about to give a file its name for the KILLED_AT-th time dies; this is how everything in a store
becomes whole. KILLED_ONCE is a file that it makes, so that no other process dies too."""
CLOCK_OFF = "CLOCK_OFF"
"""Seconds by which this process's clock is ahead."""
SCORED_IN = "SCORED_IN"
"""A file that gets a byte for every sequence that went through the model for a reference log-prob."""
PART_SEQUENCES = 8
"""Sequences in a part of the cache of log-probs, so that small shards have many parts."""


def plant(environment: Mapping[str, str]) -> None:
    """Plants what the environment asks for in this process; its imports are done."""
    if at := int(environment.get(KILLED_AT, "0")):
        _die_at_a_write(at, environment[KILLED_ONCE])
    if off := float(environment.get(CLOCK_OFF, "0")):
        now = time.time
        time.time = lambda: now() + off
    if scored := environment.get(SCORED_IN):
        _count_scored(scored)


def _die_at_a_write(left: int, once: str) -> None:
    def hook(event: str, _: Any) -> None:
        nonlocal left
        if event not in ("os.rename", "os.link") or not left:
            return
        left -= 1
        if not left:
            with contextlib.suppress(OSError):
                os.close(os.open(once, os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _count_scored(path: str) -> None:
    from alignment.logprobs import reference

    score = reference.score

    def counted(*arguments: Any) -> Any:
        for done in score(*arguments):
            with Path(path).open("ab") as file:
                file.write(b"." * len(done.scored))
            yield done

    reference.score = counted  # type: ignore[assignment]
    reference.PART_SEQUENCES = PART_SEQUENCES
