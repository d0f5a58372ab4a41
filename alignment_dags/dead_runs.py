"""Dagster runs whose process died without a word: ended, and their pool slots freed.

Run monitoring does the same for every run while a daemon is there; `align run` needs none.
"""

from __future__ import annotations

import os
import socket

import dagster as dg

from alignment_dags.processes import end_orphans, is_alive, process_mark
from alignment_dags.run_statuses import BEGUN

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
