"""Dagster runs whose process died without a word: ended, and their pool slots freed.

Run monitoring does the same for every run while a daemon is there; `align run` needs none.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

import dagster as dg
import psutil

from alignment.stages.execute import DAGSTER_RUN
from resources.pools import Pools

# Processes under names that do not come again, and what a dead one has left behind.


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


# Which statuses a Dagster run has before it ends.

BEGUN = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
"""A process has it, or should have."""
UNFINISHED = [dg.DagsterRunStatus.QUEUED, *BEGUN]


HOST, PROCESS = "align/host", "align/process"


def process_tags() -> dict[str, str]:
    """Tags that say which process runs a run: host, and pid with start time, as pids come again."""
    return {HOST: socket.gethostname(), PROCESS: process_mark(os.getpid())}


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Ids of the runs that were ended."""
    ended = []
    mine = dg.RunsFilter(statuses=BEGUN, tags={HOST: socket.gethostname()})
    for run in instance.get_runs(mine):
        process = run.tags.get(PROCESS, "")
        if is_alive(process) or is_copied(instance, run):
            continue
        if process:
            end_orphans(process, run.run_id)
        instance.report_run_failed(run, f"process {process} on {socket.gethostname()} is gone")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        ended.append(run.run_id)
    return ended


def is_copied(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a retry still carries the process of the run it retries: it has no worker of its own yet."""
    parent = None if run.parent_run_id is None else instance.get_run_by_id(run.parent_run_id)
    return parent is not None and parent.tags.get(PROCESS) == run.tags.get(PROCESS)


# Dagster's pool limits, made equal to what pools.yaml declares.


def apply_pools(instance: dg.DagsterInstance, pools: Pools) -> dict[str, int]:
    """Sets every pool's limit and drops limits of pools that are gone; returns the limits. Safe to repeat."""
    storage = instance.event_log_storage
    wanted = {name: pool.slots for name, pool in pools.pools.items()}
    known = {pool.name for pool in storage.get_pool_limits()}
    for name in known - set(wanted):
        storage.delete_concurrency_limit(name)
    for name, slots in wanted.items():
        storage.set_concurrency_slots(name, slots)
    return wanted
