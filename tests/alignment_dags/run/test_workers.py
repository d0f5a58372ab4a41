"""Runs whose process is gone are ended and give back their slots; living ones are left alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import dagster as dg
import psutil
import pytest

from alignment_dags.run.workers import HOST, PROCESS, end_dead_runs, process_tags

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
    mark = f"{child.pid}@{psutil.Process(child.pid).create_time():.2f}"
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
    pid = mine[PROCESS].split("@")[0]
    run = started(instance, mine | {PROCESS: f"{pid}@1.00"})
    assert end_dead_runs(instance) == [run.run_id]


def test_living_runs_and_those_of_other_hosts_are_left_alone(instance: dg.DagsterInstance) -> None:
    instance.event_log_storage.set_concurrency_slots(POOL, 2)
    started(instance, process_tags())
    started(instance, process_tags() | {HOST: "elsewhere", PROCESS: dead_process()})
    assert end_dead_runs(instance) == []
    assert free_slots(instance) == 0
