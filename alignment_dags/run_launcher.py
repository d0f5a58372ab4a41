"""Dagster's run launcher for one machine: a worker process a run, which run monitoring can look after.

Dagster's own launcher has no health check: a worker that is killed leaves its run started and its pool slots
taken for ever. Here the run's tags say which process works on it, so that any daemon on the machine, also one
started later, sees that it is gone. Workers do not end with the daemon: a night's training outlives its restart.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, RunLauncher, WorkerStatus
from dagster._core.origin import DEFAULT_DAGSTER_ENTRY_POINT, JobPythonOrigin
from dagster._core.storage.dagster_run import DagsterRun
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import ConfigurableClass, ConfigurableClassData, serialize_value

from alignment.errors import counted
from alignment_dags.run.workers import HOST, PROCESS, end_orphans, is_alive, is_here, pid_of, process_mark, process_of
from resources.databases import prepare_libraries

LAST_WORDS = 4000  # characters of a dead worker's stderr that its run is shown with
KEPT = 7 * 24 * 3600.0  # seconds that a worker's stderr is kept


def dagster_of(origin: JobPythonOrigin) -> list[str]:
    """The Dagster of the code location that the run came from; where it names none, this process's own, not PATH's."""
    known = list(origin.repository_origin.entry_point or DEFAULT_DAGSTER_ENTRY_POINT)
    return [sys.executable, "-m", "dagster"] if known == DEFAULT_DAGSTER_ENTRY_POINT else known


class WorkerRunLauncher(RunLauncher[Any], ConfigurableClass):
    """Starts `dagster api execute_run` in a session of its own, and knows whether it lives."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        super().__init__()  # type: ignore[no-untyped-call]
        prepare_libraries()  # in the daemon and the pages too, which load nothing else of the project's

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """How the instance configured it, as Dagster asks."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """It has no settings."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> WorkerRunLauncher:
        """As Dagster makes it."""
        return cls(inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Starts the run in a process of its own, which outlives the one that asked."""
        self._reap()
        run = context.dagster_run
        if run.job_code_origin is None:
            raise ValueError(f"run {run.run_id} does not say which code it runs")
        asked = ExecuteRunArgs(run.job_code_origin, run.run_id, self._instance.get_ref())
        command = [*dagster_of(run.job_code_origin), "api", "execute_run", serialize_value(asked)]
        with self._stderr_of(run.run_id).open("wb") as stderr:
            worker = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
            )
        self._workers[run.run_id] = worker
        tags = {HOST: socket.gethostname(), PROCESS: process_mark(worker.pid) or f"{worker.pid}@ended"}
        self._instance.add_run_tags(run.run_id, tags)
        self._instance.report_engine_event(f"Worker process {worker.pid} started", run, cls=type(self))

    def terminate(self, run_id: str) -> bool:
        """Asks the worker to end its steps and itself; False where there is no worker here to ask."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        host, mark = process_of(run)
        is_mine = host == socket.gethostname() and bool(mark) and is_here(mark)
        if not is_mine or not is_alive(mark, run_id):
            self._instance.report_engine_event(f"No worker process to end: {mark or 'none'}", run, cls=type(self))
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid_of(mark), signal.SIGTERM)
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True: a run whose process is gone is noticed."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """FAILED if the worker's process is gone; what it left running is ended first, so that a retry is alone.

        Runs of other hosts, and those that carry no process, cannot be judged from here and count as running.
        """
        self._reap()
        host, mark = process_of(run)
        if host != socket.gethostname() or not mark:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"on host {host}, which is not this one")
        if is_alive(mark, run.run_id):
            told = None if is_here(mark) else f"in another container on {host}, which cannot be seen from this one"
            return CheckRunHealthResult(WorkerStatus.RUNNING, told, run_worker_id=mark)
        ended = end_orphans(mark, run.run_id)
        left = f"; ended {counted(len(ended), 'process', 'processes')} it left" if ended else ""
        return CheckRunHealthResult(WorkerStatus.FAILED, f"process {mark} on {host} is gone{left}", run_worker_id=mark)

    def get_run_worker_debug_info(self, run: DagsterRun, include_container_logs: bool | None = True) -> str | None:
        """The worker's last words."""
        try:
            said = self._stderr_of(run.run_id).read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return None
        return said[-LAST_WORDS:] or None

    def join(self, timeout: int = 30) -> None:
        """Waits for the workers that this launcher has started."""
        until = time.monotonic() + timeout
        for worker in self._workers.values():
            worker.wait(max(0.0, until - time.monotonic()))

    def _reap(self) -> None:
        """Collects the exit codes of workers that have ended."""
        for run_id, worker in list(self._workers.items()):
            if worker.poll() is not None:
                self._workers.pop(run_id, None)

    def _stderr_of(self, run_id: str) -> Path:
        """Where a worker's stderr goes; a daemon that ends must not close it. Old ones are removed."""
        folder = Path(self._instance.root_directory, "run_workers")
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - old.stat().st_mtime > KEPT:
                    old.unlink()
        return folder / f"{run_id}.err"
