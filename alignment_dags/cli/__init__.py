"""The `align` command. Heavy imports live inside the commands, so that `align --help` answers at once."""

from __future__ import annotations

import os
import signal
import threading
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
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(INTERRUPTED)


def main() -> None:
    """Entry point of `align`. Commands that start no Dagster run get the usual handlers back (`app.options`)."""
    if threading.current_thread() is not threading.main_thread():  # which has no say in signals
        from alignment_dags.cli.app import main as command

        return command()
    usual = {number: signal.signal(number, stop_at_once) for number in SIGNALS}
    try:
        from alignment_dags.cli.app import main as command

        command()
    finally:
        for number, handler in usual.items():
            if signal.getsignal(number) is stop_at_once:
                signal.signal(number, handler)


def usual_handlers() -> None:
    """Ctrl-C is a KeyboardInterrupt from here on, and SIGTERM ends the process, as in any Python program."""
    if signal.getsignal(signal.SIGINT) is stop_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


__all__ = ["INTERRUPTED", "STOPPED", "main", "usual_handlers"]
