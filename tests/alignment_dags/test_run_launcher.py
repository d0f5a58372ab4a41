"""Run workers: started apart from the daemon, found dead when they are killed, and ended when asked."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.launcher.base import LaunchRunContext, WorkerStatus
from dagster._daemon.monitoring.run_monitoring import monitor_started_run

from alignment_dags.run.workers import HOST, PROCESS, end_dead_runs, is_alive, pid_of, process_mark
from alignment_dags.run_launcher import WorkerRunLauncher

LAUNCHER = {"module": "alignment_dags.run_launcher", "class": "WorkerRunLauncher"}
JOB = ReconstructableJob.for_file(str(Path(__file__).with_name("worker_job.py")), "waiting")
FOLDER = "WORKER_TEST_FOLDER"
PATIENCE = 600.0  # seconds until a condition that should hold soon is given up


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.05)


class Worker:
    """One launched run."""

    def __init__(self, instance: dg.DagsterInstance, folder: Path) -> None:
        self.instance = instance
        self.folder = folder
        self.run_id = instance.create_run_for_job(
            JOB.get_definition(), job_code_origin=JOB.get_python_origin(), status=dg.DagsterRunStatus.STARTING
        ).run_id
        self.launcher.launch_run(LaunchRunContext(self.run, workspace=None))
        self.pid = pid_of(self.run.tags[PROCESS])

    @property
    def launcher(self) -> WorkerRunLauncher:
        assert isinstance(self.instance.run_launcher, WorkerRunLauncher)
        return self.instance.run_launcher

    @property
    def run(self) -> dg.DagsterRun:
        run = self.instance.get_run_by_id(self.run_id)
        assert run is not None
        return run

    def helper(self) -> int:
        """The pid of what the step has started; from here on the step is working."""
        until((self.folder / "helper").exists, "the step's start")
        return int((self.folder / "helper").read_text())


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    settings = {"run_launcher": LAUNCHER, "run_monitoring": {"enabled": True}}
    with dg.instance_for_test(overrides=settings) as instance:
        one = Worker(instance, tmp_path)
        yield one
        (tmp_path / "go").touch()
        one.launcher.join(timeout=int(PATIENCE))


def test_a_run_is_executed_by_a_process_of_its_own_session(worker: Worker) -> None:
    worker.helper()
    assert os.getsid(worker.pid) == worker.pid != os.getsid(0)
    assert worker.launcher.check_run_worker_health(worker.run).status == WorkerStatus.RUNNING
    (worker.folder / "go").touch()
    until(lambda: worker.run.is_finished, "the run's end")
    assert worker.run.status == dg.DagsterRunStatus.SUCCESS


def test_monitoring_ends_a_run_whose_worker_was_killed_with_all_it_left_running(worker: Worker) -> None:
    helper = worker.helper()
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: not process_mark(worker.pid), "the worker's death")
    assert is_alive(process_mark(helper))
    (record,) = worker.instance.get_run_records(dg.RunsFilter(run_ids=[worker.run_id]))
    monitor_started_run(worker.instance, None, record, logging.getLogger())  # type: ignore[arg-type]
    assert worker.run.status == dg.DagsterRunStatus.FAILURE
    until(lambda: not is_alive(process_mark(helper)), "the end of what the worker left")


def test_a_launcher_started_later_sees_the_same(worker: Worker) -> None:
    worker.helper()
    later = WorkerRunLauncher()
    later.register_instance(worker.instance)
    assert later.check_run_worker_health(worker.run).status == WorkerStatus.RUNNING
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: not process_mark(worker.pid), "the worker's death")
    health = later.check_run_worker_health(worker.run)
    assert health.status == WorkerStatus.FAILED
    assert f"process {worker.run.tags[PROCESS]}" in str(health.msg)
    assert re.search(r"ended \d+ process(es)? it left", str(health.msg))


def test_a_terminated_run_is_canceled_and_its_worker_ends(worker: Worker) -> None:
    worker.helper()
    assert worker.launcher.terminate(worker.run_id)
    until(lambda: worker.run.is_finished, "the run's end")
    assert worker.run.status == dg.DagsterRunStatus.CANCELED
    until(lambda: not process_mark(worker.pid), "the worker's end")
    assert not worker.launcher.terminate(worker.run_id)


def test_runs_that_cannot_be_judged_from_here_are_left_alone(worker: Worker) -> None:
    for tags in ({HOST: "elsewhere", PROCESS: "1@1.00"}, {}):
        run = worker.instance.create_run_for_job(JOB.get_definition(), tags=tags, status=dg.DagsterRunStatus.STARTED)
        assert worker.launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
        assert not worker.launcher.terminate(run.run_id)


def test_a_run_without_code_is_refused_and_last_words_are_kept(worker: Worker) -> None:
    run = worker.instance.create_run_for_job(JOB.get_definition(), status=dg.DagsterRunStatus.STARTING)
    with pytest.raises(ValueError, match="does not say which code it runs"):
        worker.launcher.launch_run(LaunchRunContext(run, workspace=None))
    assert worker.launcher.get_run_worker_debug_info(run) is None
    folder = Path(worker.instance.root_directory, "run_workers")
    (folder / f"{run.run_id}.err").write_text("no module named torch\n", encoding="utf-8")
    assert worker.launcher.get_run_worker_debug_info(run) == "no module named torch"


def test_align_run_leaves_a_retry_alone_that_has_no_worker_yet(worker: Worker) -> None:
    worker.helper()
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: not process_mark(worker.pid), "the worker's death")
    copied = {name: worker.run.tags[name] for name in (HOST, PROCESS)}
    retry = worker.instance.create_run_for_job(
        JOB.get_definition(), tags=copied, parent_run_id=worker.run_id, root_run_id=worker.run_id
    )
    assert end_dead_runs(worker.instance) == [worker.run_id]
    left = worker.instance.get_run_by_id(retry.run_id)
    assert left is not None
    assert left.status == dg.DagsterRunStatus.NOT_STARTED
