"""Dagster runs whose process died without a word: ended, and their pool slots freed.

Run monitoring does the same for every run while a daemon is there; `align run` needs none.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psutil

from alignment.stages.execute import DAGSTER_RUN, JOB
from resources.pools import Pools

# Processes under names that do not come again, and what a dead one has left behind.
#
# Where there is /proc, a mark is PID@TICKS:BOOT:NAMESPACE: the start in clock ticks since boot, which no step of the
# clock moves (psutil's create_time does move there), which boot that was, and in which PID namespace (container) the
# PID counts. Elsewhere (macOS, Windows) it is PID@SECONDS, as the kernel noted the start then. Version 0.1.0 wrote
# PID@SECONDS on Linux too.

PROC = Path("/proc")
FIRST_NAMESPACE = "4026531836"  # of the machine itself, the same on every Linux
DYING = 2.0  # seconds that a killed process is waited for: one that nobody reaps stays in the table
TOLERANCE = 2.0  # seconds between two readings of one process's create_time


@dataclass(frozen=True)
class Mark:
    """A process mark taken apart; `boot` and `namespace` are empty where it has none."""

    pid: int
    start: str
    boot: str = ""
    namespace: str = ""

    @classmethod
    def parse(cls, mark: str) -> Mark:
        """The inverse of `str`; what older marks lack is empty."""
        pid, _, rest = mark.partition("@")
        start, boot, namespace = [*rest.split(":"), "", ""][:3]
        return cls(int(pid), start, boot, namespace)


def process_mark(pid: int) -> str:
    """The mark of a process; empty if there is no such process, or only its exit code."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text()[:8]
        namespace = (PROC / "self/ns/pid").stat().st_ino
    except OSError:
        return _mark_by_seconds(pid)
    ticks = _start_ticks(pid)
    return "" if ticks is None else f"{pid}@{ticks}:{boot}:{namespace}"


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat, counted behind the command's name, which may hold anything."""
    try:
        state, *fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in (b"Z", b"X") else int(fields[18])


def _mark_by_seconds(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{pid}@{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""


def is_alive(mark: str, run_id: str = "") -> bool:
    """Whether the process of a run is there. One that lives in another container cannot be seen and counts as alive,
    unless that container was replaced by this one."""
    if not mark:
        return False
    known, now = Mark.parse(mark), process_mark(pid_of(mark))
    here = Mark.parse(process_mark(os.getpid()))
    if not known.boot:
        return bool(now) and _is_same_by_seconds(known, run_id, upgraded=bool(here.boot))
    if known.boot == here.boot and known.namespace != here.namespace:
        began = _start_ticks(1)  # of this container: what its predecessor ran under the same host name is over
        replaced = known.namespace != FIRST_NAMESPACE and began is not None and began > int(known.start)
        return not replaced
    return now == mark


def _is_same_by_seconds(known: Mark, run_id: str, upgraded: bool) -> bool:
    """Whether a process that is there is the one of a mark in seconds.

    `upgraded` says that an older version wrote the mark on Linux: a clock that was set since has moved what psutil
    reads now. There a process that works by its command line counts as the same.
    """
    try:
        process = psutil.Process(known.pid)
        if abs(process.create_time() - float(known.start)) <= TOLERANCE:
            return True
        command = process.cmdline() if upgraded else []
    except (psutil.Error, ValueError):  # ValueError: a worker that had ended before it was marked
        return False
    is_worker = bool(run_id) and any(run_id in word for word in command)
    return is_worker or any(Path(word).name == "align" for word in command[:2])


def is_here(mark: str) -> bool:
    """Whether the mark's PID names its process, or nobody's, in this container and since this boot."""
    known, here = Mark.parse(mark), Mark.parse(process_mark(os.getpid()))
    return not known.boot or (known.boot, known.namespace) == (here.boot, here.namespace)


def pid_of(mark: str) -> int:
    """The process id in a mark."""
    return Mark.parse(mark).pid


def end_orphans(mark: str, run_id: str) -> list[int]:
    """Kills what a dead run worker has left running, and returns the pids once they have ended.

    Steps would go on using the device, and what torchrun starts is in sessions of its own; those are known by
    the run that is named in their environment. One of them may start another while it is looked for: so they are looked
    for until there is none.
    """
    leader = pid_of(mark) if is_here(mark) else None
    ended: list[int] = []
    tried: set[int] = set()
    while found := [one for one in orphans(leader, run_id) if one.pid not in tried]:
        for process in found:
            tried.add(process.pid)
            with contextlib.suppress(psutil.Error):
                process.kill()
                ended.append(process.pid)
        psutil.wait_procs(found, DYING)
    return ended


def orphans(leader: int | None, run_id: str) -> Iterator[psutil.Process]:
    """The session that a dead worker led (nobody can lead one of that name while it has members), and of
    processes that were started for its run. A cluster's job is left, as the next run goes on with it. `leader` is None
    where its PID means another process by now."""
    leads_again = leader is None or bool(process_mark(leader))
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if process.pid in (leader, os.getpid()):
                continue
            in_session = not leads_again and os.getsid(process.pid) == leader
            environment = process.environ()
            if in_session or (environment.get(DAGSTER_RUN) == run_id and JOB not in environment):
                yield process


# Which statuses a Dagster run has before it ends.

BEGUN = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
"""A process has it, or should have."""
UNFINISHED = [dg.DagsterRunStatus.QUEUED, *BEGUN]


HOST, PROCESS = ".dagster/align_host", ".dagster/align_process"  # Dagster's pages hide tags of this prefix
OLD_HOST, OLD_PROCESS = "align/host", "align/process"
"""The tags of runs that version 0.1.0 started."""


def process_tags() -> dict[str, str]:
    """Tags that say which process runs a run: the host, and the mark of this process on it."""
    return {HOST: socket.gethostname(), PROCESS: process_mark(os.getpid())}


def process_of(run: dg.DagsterRun) -> tuple[str | None, str]:
    """Host and process mark of a run; None and an empty mark if its tags have none."""
    return run.tags.get(HOST, run.tags.get(OLD_HOST)), run.tags.get(PROCESS, run.tags.get(OLD_PROCESS, ""))


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Ends the runs of this host whose process is gone, and frees the slots of runs that are over; returns the ids of
    those that were ended."""
    ended = []
    host = socket.gethostname()
    mine = [dg.RunsFilter(statuses=BEGUN, tags={name: host}) for name in (HOST, OLD_HOST)]
    for run in [run for wanted in mine for run in instance.get_runs(wanted)]:
        process = process_of(run)[1]
        if is_alive(process, run.run_id) or is_copied(instance, run):
            continue
        if process:
            end_orphans(process, run.run_id)
        instance.report_run_failed(run, f"process {process} on {host} is gone")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        ended.append(run.run_id)
    _free_slots_of_ended_runs(instance)
    return ended


SETTLED = 20.0
"""Seconds after which the processes of another host's run are taken to have ended too, as dagster.yaml says."""


def _free_slots_of_ended_runs(instance: dg.DagsterInstance) -> None:
    """A step that ends before it begins (its job is gone, as after a recipe was renamed) keeps its slot, though its
    run is over: without a daemon the next run would wait for it for ever."""
    for run_id in instance.event_log_storage.get_concurrency_run_ids():
        record = instance.get_run_record_by_id(run_id)
        if record is not None:
            is_mine = process_of(record.dagster_run)[0] == socket.gethostname()
            ended = record.end_time if record.dagster_run.is_finished else None
            if ended is None or not (is_mine or time.time() - ended > SETTLED):
                continue
        instance.event_log_storage.free_concurrency_slots_for_run(run_id)


def is_copied(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a retry still carries the process of the run it retries: it has no worker of its own yet."""
    parent = None if run.parent_run_id is None else instance.get_run_by_id(run.parent_run_id)
    return parent is not None and process_of(parent) == process_of(run)


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
