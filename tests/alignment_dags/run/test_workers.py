"""Runs whose process is gone are ended and give back their slots; living ones are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest

from alignment_dags.run import workers
from alignment_dags.run.workers import (
    HOST,
    PROCESS,
    end_dead_runs,
    end_orphans,
    is_alive,
    is_here,
    process_mark,
    process_tags,
)

POOL = "local"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        instance.event_log_storage.set_concurrency_slots(POOL, 1)
        yield instance


@dg.job
def nothing() -> None:
    pass


def started(instance: dg.DagsterInstance, tags: dict[str, str]) -> dg.DagsterRun:
    run = instance.create_run_for_job(nothing, tags=tags, status=dg.DagsterRunStatus.STARTED)
    claim = instance.event_log_storage.claim_concurrency_slot(POOL, run.run_id, "step")
    assert claim.is_claimed
    return run


def free_slots(instance: dg.DagsterInstance) -> int:
    info = instance.event_log_storage.get_concurrency_info(POOL)
    return info.slot_count - info.active_slot_count


def dead_process() -> str:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = process_mark(child.pid)
    child.kill()
    child.wait()
    return mark


def test_a_run_whose_process_died_is_ended_and_its_slot_freed(instance: dg.DagsterInstance) -> None:
    run = started(instance, process_tags() | {PROCESS: dead_process()})
    assert free_slots(instance) == 0
    assert end_dead_runs(instance) == [run.run_id]
    ended = instance.get_run_by_id(run.run_id)
    assert ended is not None
    assert ended.status == dg.DagsterRunStatus.FAILURE
    assert free_slots(instance) == 1


def test_a_pid_that_came_again_is_not_taken_for_the_old_process(instance: dg.DagsterInstance) -> None:
    mine = process_tags()
    pid, _, rest = mine[PROCESS].partition("@")
    ticks, _, machine = rest.partition(":")
    instance.event_log_storage.set_concurrency_slots(POOL, 2)
    runs = [started(instance, mine | {PROCESS: f"{pid}@{start}"}) for start in (f"{int(ticks) - 1}:{machine}", "1.00")]
    assert set(end_dead_runs(instance)) == {run.run_id for run in runs}


@pytest.mark.parametrize("how", ["report_run_failed", "report_run_canceled"])
@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_a_slot_that_a_run_kept_at_its_end_is_freed(
    instance: dg.DagsterInstance, how: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(instance, process_tags() | ({HOST: host} if host == "elsewhere" else {}))
    getattr(instance, how)(run)
    assert end_dead_runs(instance) == []
    assert free_slots(instance) == (1 if host == "here" else 0), "the other host's processes may still be ending"
    monkeypatch.setattr(workers, "SETTLED", 0.0)
    end_dead_runs(instance)
    assert free_slots(instance) == 1


def test_a_slot_of_a_run_that_was_deleted_is_freed(instance: dg.DagsterInstance) -> None:
    instance.delete_run(started(instance, process_tags()).run_id)
    end_dead_runs(instance)
    assert free_slots(instance) == 1


def test_living_runs_and_those_of_other_hosts_are_left_alone(instance: dg.DagsterInstance) -> None:
    instance.event_log_storage.set_concurrency_slots(POOL, 2)
    started(instance, process_tags())
    started(instance, process_tags() | {HOST: "elsewhere", PROCESS: dead_process()})
    assert end_dead_runs(instance) == []
    assert free_slots(instance) == 0


STEP = 3600.0  # seconds that somebody sets the clock forward


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Sets the clock forward, as psutil sees it on Linux: it adds the boot time, which moves, to the ticks."""

    def step() -> None:
        before = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: before(process) + STEP)

    return step


@pytest.fixture
def child() -> Iterator[Callable[..., int]]:
    """Starts processes that wait, with these words on their command line, and gives their pids."""
    started = []

    def start(*words: str) -> int:
        started.append(subprocess.Popen([sys.executable, "-c", "input()", *words], stdin=subprocess.PIPE))
        return started[-1].pid

    yield start
    for one in started:
        one.kill()
        one.wait()


def test_a_run_goes_on_when_the_clock_is_set(instance: dg.DagsterInstance, set_clock: Callable[[], None]) -> None:
    mark = process_mark(os.getpid())
    started(instance, process_tags())
    set_clock()
    assert process_mark(os.getpid()) == mark
    assert end_dead_runs(instance) == []
    assert free_slots(instance) == 0


def test_a_run_that_an_older_version_marked_by_seconds_goes_on_through_the_upgrade(
    instance: dg.DagsterInstance, set_clock: Callable[[], None], child: Callable[..., int]
) -> None:
    run = instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED)
    worker, stranger = child("api", "execute_run", f'{{"run_id": "{run.run_id}"}}'), child()
    marks = {pid: f"{pid}@{psutil.Process(pid).create_time():.2f}" for pid in (worker, stranger)}
    assert all(is_alive(mark, run.run_id) for mark in marks.values())
    set_clock()
    assert is_alive(marks[worker], run.run_id), "its command line names the run"
    assert not is_alive(marks[stranger], run.run_id), "its pid may be another's by now"
    assert not is_alive(f"{worker}@ended", run.run_id)
    instance.add_run_tags(run.run_id, {HOST: process_tags()[HOST], PROCESS: marks[worker]})
    assert end_dead_runs(instance) == []


def fake_proc(root: Path, init: int, boot: str = "0123abcd-ffff", **ticks: int) -> Path:
    """A /proc of a PID namespace of its own whose first process started at `init`, and `p7` at so many ticks."""
    for name, start in ({"p1": init} | ticks).items():
        folder = root / name[1:]
        folder.mkdir(parents=True)
        (folder / "stat").write_text(f"{name[1:]} (a) b) S {' '.join(['0'] * 18)} {start} 0")
    for name, text in {"self/ns/pid": "", "sys/kernel/random/boot_id": boot}.items():
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(text)
    (root / str(os.getpid())).mkdir()
    (root / str(os.getpid()) / "stat").write_text(f"{os.getpid()} (me) S {' '.join(['0'] * 18)} {init + 1} 0")
    return root


def test_a_process_of_another_container_counts_as_alive_until_its_container_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enter(proc: Path) -> None:
        monkeypatch.setattr(workers, "PROC", proc)

    enter(fake_proc(tmp_path / "one", init=100, p7=500))
    mark = process_mark(7)
    assert mark.startswith("7@500:0123abcd:") and is_alive(mark) and is_here(mark)
    enter(fake_proc(tmp_path / "beside", init=101, p7=900))
    assert is_alive(mark), "it cannot be seen from here"
    assert not is_here(mark), "and pid 7 is another process here, which nobody may end for it"
    enter(fake_proc(tmp_path / "restarted", init=600))
    assert not is_alive(mark)
    monkeypatch.setattr(workers, "FIRST_NAMESPACE", mark.rpartition(":")[2])
    assert is_alive(mark), "a container that starts ends nothing on the machine itself"
    enter(fake_proc(tmp_path / "rebooted", init=1, boot="4567abcd-ffff", p7=500))
    assert not is_alive(mark) and not is_here(mark)


def test_what_a_dead_worker_left_is_ended_by_its_session_on_the_same_boot_only() -> None:
    leaves = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()']); print(flush=True); input()"
    leader = subprocess.Popen(
        [sys.executable, "-c", leaves], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert leader.stdout is not None and leader.stdout.readline()
    (left,) = (one.pid for one in psutil.Process(leader.pid).children())
    mark = process_mark(leader.pid)
    leader.kill()
    leader.wait()
    ticks = mark.partition("@")[2].partition(":")[0]
    assert end_orphans(f"{leader.pid}@{ticks}:another0:4026531836", "no run") == []
    assert end_orphans(mark, "no run") == [left]


def test_where_there_is_no_proc_the_start_is_told_in_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_clock: Callable[[], None]
) -> None:
    monkeypatch.setattr(workers, "PROC", tmp_path)
    mark = process_mark(os.getpid())
    pid, _, seconds = mark.partition("@")
    assert float(seconds) == pytest.approx(psutil.Process().create_time(), abs=0.01)
    assert is_alive(mark) and is_alive(f"{pid}@{float(seconds) + 1:.2f}"), "two readings may differ a little"
    assert not is_alive(f"{pid}@{float(seconds) - 5:.2f}")
    assert is_here(mark)
