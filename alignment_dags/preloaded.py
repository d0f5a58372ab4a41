"""Imported last by the server that step processes are forked from: what all steps have in common.

What they print is shown by one process that ends with the step, and no interruption is lost. And what the server has
imported is no garbage: a collection in a step would walk through the half million objects of torch, MLflow and the
others, 0.3 s each time, and training asks for several. It would also copy the memory that all steps share with the
server: 137 MiB a step.
"""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.execution import compute_logs

from alignment_dags.step_processes import ctrl_c_blocked


@contextmanager
def _tail_of_this_process(path: str, stream: Any) -> Iterator[tuple[int, ...]]:
    """A process that shows on the terminal what a step prints, ends with the step, however that ends, and leaves no
    traceback. Dagster's own is watched by a second Python: a step that is killed before it starts leaves the first."""
    shown = stream if compute_logs._fileno(stream) else None  # type: ignore[no-untyped-call]
    with ctrl_c_blocked():
        tail = subprocess.Popen(["tail", "-F", "-c", "+0", f"--pid={os.getpid()}", path], stdout=shown)
    try:
        yield (tail.pid,)
    finally:
        time.sleep(float(os.environ.get("DAGSTER_COMPUTE_LOG_TAIL_WAIT_AFTER_FINISH", "0")))  # as Dagster's own does
        tail.terminate()
        with suppress(subprocess.TimeoutExpired):
            tail.wait(30)


def _ends_with_a_process() -> bool:
    """Whether this system's `tail` has --pid, as GNU's has."""
    with suppress(OSError):
        return b"GNU" in subprocess.run(["tail", "--version"], capture_output=True, check=False).stdout
    return False


if _ends_with_a_process():
    compute_logs.execute_posix_tail = _tail_of_this_process

_unraisable = sys.unraisablehook


def _interrupted_again(lost: Any) -> None:
    """An interruption that is raised in a destructor or a weak reference's callback is lost, with a traceback: it comes
    again a moment later, where the step sees it."""
    if not issubclass(lost.exc_type, (KeyboardInterrupt, DagsterExecutionInterruptedError)):
        _unraisable(lost)
        return
    again = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()


sys.unraisablehook = _interrupted_again

gc.collect()
gc.freeze()

# Ctrl-C on a terminal reaches every process. A step's process ignores it until Dagster handles it there; what came
# before that the run's process passes on. It was blocked while the server imported (alignment_dags/step_processes.py).
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
