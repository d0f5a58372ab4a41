"""Dagster's executor of a process a step, which a person can stop at any moment.

Dagster's own has two moments that it does not withstand. The server that step processes are forked from imports torch,
TRL and MLflow first, for many seconds: Ctrl-C reaches it as well and ends it with a traceback, and the run fails for
that. And a step whose process is about to start when Ctrl-C comes is not told, and runs to its end.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from typing import Any

import dagster as dg
from dagster._core.definitions.executor_definition import MULTI_PROC_CONFIG, multiple_process_executor_requirements
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.executor import multiprocess
from dagster._utils.interrupts import check_captured_interrupt, pop_captured_interrupt

PERIOD = 0.05  # seconds between two looks for an interruption while the server imports
_server: Any = forkserver._forkserver  # type: ignore[attr-defined]


class StepProcesses(multiprocess.MultiprocessExecutor):
    """Forks steps from a server that Ctrl-C does not reach, and tells every step of an interruption."""

    def __init__(self, most: int, preloaded: list[str], retries: RetryMode) -> None:
        super().__init__(
            retries=retries,
            max_concurrent=most,
            start_method="forkserver",
            explicit_forkserver_preload=preloaded,
        )
        self._preloaded = [multiprocess.__name__, *preloaded]  # as Dagster completes it

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[dg.DagsterEvent]:
        """Dagster's events; raises `DagsterExecutionInterruptedError` where it was interrupted before any step."""
        start_server(self._preloaded)
        yield from told_to_all(super().execute(plan_context, execution_plan))


@contextlib.contextmanager
def ctrl_c_blocked() -> Iterator[None]:
    """SIGINT waits until the end here, and is blocked for good in processes that are started here."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_server(modules: list[str]) -> None:
    """Starts the server that processes are forked from, and returns once it has imported the modules.

    SIGINT is blocked where it starts, and so in the server as well, until its last module ignores it
    (`alignment_dags.preloaded`). An interruption ends it: its imports would keep a person waiting.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(modules)
    resource_tracker.ensure_running()  # by itself: it unblocks the signals
    with ctrl_c_blocked():
        _server.ensure_running()
    ready = threading.Thread(target=_fork_one, args=(context,), daemon=True)
    ready.start()
    while ready.is_alive() and not check_captured_interrupt():
        ready.join(PERIOD)
    if not check_captured_interrupt():
        return
    if ready.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(_server._forkserver_pid, signal.SIGKILL)
        ready.join()
    raise DagsterExecutionInterruptedError


def _fork_one(context: Any) -> None:
    """Returns when the server has forked a process, or is gone: the steps' own processes then start another."""
    process = context.Process(target=os.getpid)
    with contextlib.suppress(EOFError, OSError):
        process.start()
        process.join()


def told_to_all(events: Iterator[dg.DagsterEvent]) -> Iterator[dg.DagsterEvent]:
    """The executor's events; an interruption waits for the processes that are about to start.

    The executor tells the processes that are there, once, and would start and wait for those that are not.
    """
    starting: set[str | None] = set()
    waits = False
    for event in events:
        yield event
        if event.event_type == dg.DagsterEventType.STEP_WORKER_STARTING:
            starting.add(event.step_key)
        elif event.step_key in starting:
            starting.remove(event.step_key)
        if starting:
            waits = pop_captured_interrupt() or waits
        elif waits:
            waits = False
            signal.raise_signal(signal.SIGINT)


@dg.executor(name="processes", config_schema=MULTI_PROC_CONFIG, requirements=multiple_process_executor_requirements())
def step_processes(init_context: dg.InitExecutorContext) -> StepProcesses:
    """Each step in a process of its own, forked from a server that has imported the heavy packages once."""
    config: Any = init_context.executor_config
    preloaded = config["start_method"]["forkserver"]["preload_modules"]
    (retries,) = config["retries"]
    return StepProcesses(config["max_concurrent"], preloaded, RetryMode(retries))
