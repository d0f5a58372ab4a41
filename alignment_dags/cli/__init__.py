"""The `align` command. Heavy imports live inside the commands, so that `align --help` answers at once."""

from __future__ import annotations

import signal
import threading

from alignment_dags.cli.stopping import SIGNALS, stop_at_once


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
            if signal.getsignal(number) is not signal.SIG_IGN:  # set where all is said, until the process is over
                signal.signal(number, handler)


__all__ = ["main"]
