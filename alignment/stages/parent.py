"""Ends a process with the one that started it, however that ended: what goes on would hold a GPU that is given to
another by then, beside another process that makes the same artifact."""

from __future__ import annotations

import os
import signal
import threading
import time

PARENT = "ALIGN_PARENT"  # the pid of the process that waits for this one
LOOK = 0.5
"""Seconds between two looks at who the parent is."""


def end_with_parent() -> None:
    """Has this process killed once the one that its starter named by `PARENT` is not its parent any more; does nothing
    where none is named. What this process starts is not told of it."""
    if parent := os.environ.pop(PARENT, None):
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGKILL)
