"""Dagster runs whose process died without a word: ended, and their pool slots freed.

Dagster's own launcher has no health check, so a killed run would stay started and hold its slot for ever.
"""

from __future__ import annotations

import os
import socket

import dagster as dg
import psutil

HOST, PROCESS = "align/host", "align/process"
UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def process_tags() -> dict[str, str]:
    """Tags that say which process runs a run: host, and pid with start time, as pids come again."""
    return {HOST: socket.gethostname(), PROCESS: _process(os.getpid())}


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Ids of the runs that were ended."""
    ended = []
    mine = dg.RunsFilter(statuses=UNFINISHED, tags={HOST: socket.gethostname()})
    for run in instance.get_runs(mine):
        process = run.tags.get(PROCESS, "")
        pid = int(process.split("@")[0] or 0)
        if pid and psutil.pid_exists(pid) and _process(pid) == process:
            continue
        instance.report_run_failed(run, f"process {process} on {socket.gethostname()} is gone")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        ended.append(run.run_id)
    return ended


def _process(pid: int) -> str:
    try:
        return f"{pid}@{psutil.Process(pid).create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""
