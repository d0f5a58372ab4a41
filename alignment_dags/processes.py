"""Processes under names that do not come again, and what a dead one has left behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import psutil

from alignment.stages.execute import DAGSTER_RUN


def process_mark(pid: int) -> str:
    """Pid with start time, as pids come again; empty if there is no such process, or only its exit code."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        return f"{pid}@{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""


def is_alive(mark: str) -> bool:
    return bool(mark) and process_mark(pid_of(mark)) == mark


def pid_of(mark: str) -> int:
    return int(mark.split("@")[0])


def end_orphans(mark: str, run_id: str) -> list[int]:
    """Kills what a dead run worker has left running, and returns the pids.

    Steps would go on using the device, and what torchrun starts is in sessions of its own; those are known by
    the run that is named in their environment.
    """
    ended = []
    for pid in orphans(pid_of(mark), run_id):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
            ended.append(pid)
    return ended


def orphans(leader: int, run_id: str) -> Iterator[int]:
    """Pids of the session that a dead worker led (nobody can lead one of that name while it has members), and of
    processes that were started for its run."""
    leads_again = bool(process_mark(leader))
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if process.pid == leader or process.pid == os.getpid():
                continue
            in_session = not leads_again and os.getsid(process.pid) == leader
            if in_session or process.environ().get(DAGSTER_RUN) == run_id:
                yield process.pid
