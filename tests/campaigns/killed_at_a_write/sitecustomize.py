"""For every Python process that finds this folder on its path: one of them kills itself at a write.

It is the first that is about to give a file its name for the KILLED_AT-th time, which is how everything in a store
becomes whole; KILLED_ONCE is a file that it makes, so that no other process dies too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Any

_left = [int(os.environ.get("KILLED_AT", "0"))]


def _hook(event: str, arguments: Any) -> None:
    if event not in ("os.rename", "os.link") or not _left[0]:
        return
    _left[0] -= 1
    if not _left[0]:
        with contextlib.suppress(OSError):
            os.close(os.open(os.environ["KILLED_ONCE"], os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)


if _left[0]:
    sys.addaudithook(_hook)
