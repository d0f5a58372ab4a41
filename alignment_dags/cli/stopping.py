"""What Ctrl-C and SIGTERM do to a command before its work begins. Imports nothing that takes time."""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C or SIGTERM stopped, as shells give it."""
STOPPED = "stopped; run it again to go on"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """Handler of a signal while no Dagster run is on its way: says so in a line, and ends the process.

    A KeyboardInterrupt in the middle of an import can end in a traceback, in another error, or nowhere. What was
    written so far is as good as after a kill, which every store and table here withstands.
    """
    begin = "\r\x1b[K" if os.isatty(2) else ""  # over a line that moves
    os.write(2, f"{begin}{STOPPED}\n".encode())
    os._exit(INTERRUPTED)


def nothing_to_add() -> None:
    """All is said: an impatient second Ctrl-C prints nothing more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def usual_handlers() -> None:
    """Ctrl-C is a KeyboardInterrupt from here on, and SIGTERM ends the process, as in any Python program."""
    if signal.getsignal(signal.SIGINT) is stop_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
