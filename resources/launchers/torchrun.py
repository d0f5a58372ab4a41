"""torchrun through Dagster Pipes: one process a device, on the step's machine and on the other nodes of its pool."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import dagster as dg
import psutil
from dagster._core.errors import DagsterPipesExecutionError

from alignment.devices import take
from alignment.stages.parent import PARENT
from resources.home import PROJECT
from resources.launchers.launcher import Launch, Program, ProgramLauncher, torchrun_options, undisturbed

PATIENCE = 30
"""Seconds that processes have to end before they are killed."""


class TorchrunLauncher(ProgramLauncher):
    """Holds the key while the ranks work. They end with the step."""

    ends_with_step = True

    def __init__(self, several_nodes: bool) -> None:
        self.elsewhere = several_nodes

    def start(self, launch: Launch, program: Program) -> None:
        """Runs the first node's ranks as children of the step, and those of the others by a shell on each."""
        pool, settings = launch.pool, launch.pool.torchrun
        meet_at = (settings.address or socket.gethostname(), settings.port) if pool.nodes > 1 else None
        with take(pool.gpus_per_node, launch.pool_name) as gpus, _others(launch, program, meet_at):
            dg.PipesSubprocessClient().run(
                command=[sys.executable, *_as_torchrun(program, 0, meet_at)],
                context=launch.context,
                # addresses go by environment: every user of the machine can read a process's arguments
                env=program.environment | gpus.environment | {PARENT: str(os.getpid())},
            )

    def stop(self, launch: Launch, program: Program) -> None:
        """Ends the ranks here that their client has not ended; those of other nodes have ended with `start`."""
        for child in _torchruns_of(program):
            ranks = [child, *child.children(recursive=True)]
            child.terminate()
            _, alive = psutil.wait_procs(ranks, PATIENCE)
            for rank in alive:
                rank.kill()


def _as_torchrun(program: Program, node: int, meet_at: tuple[str, int] | None) -> list[str]:
    """One rank, too, is torchrun's: it sets what a rank reads."""
    if program.pool.world_size > 1:
        return program.python(node, meet_at)
    return [*torchrun_options(1, 1, 0, None, program.elastic), *program.arguments]


@contextmanager
def _others(launch: Launch, program: Program, meet_at: tuple[str, int] | None) -> Iterator[None]:
    """The ranks of the other nodes, started and in the end stopped; one of them that fails ends the first node's."""
    pool = launch.pool
    started: dict[str, subprocess.Popen[bytes]] = {}
    over = threading.Event()
    try:
        for node, host in enumerate(pool.torchrun.hosts, start=1):
            words = [sys.executable, "-m", "alignment.devices", str(pool.gpus_per_node), launch.pool_name]
            words += [sys.executable, *program.python(node, meet_at)]
            assignments = [f"{name}={value}" for name, value in program.environment.items()]
            line = f"cd {shlex.quote(str(PROJECT))} && exec {shlex.join(['env', *assignments, *words])}"
            shell = [word.format(host=host) for word in pool.torchrun.shell]
            # a terminal of ssh (-tt) ends what runs on the host when the ssh here ends
            started[host] = subprocess.Popen([*shell, line], stdin=subprocess.DEVNULL, start_new_session=True)
            if not program.elastic:
                threading.Thread(target=_end_with, args=(started[host], program, over), daemon=True).start()
        try:
            yield
        except DagsterPipesExecutionError as error:
            codes = {host: process.poll() for host, process in started.items()}
            failed = ", ".join(f"node {host} ended with exit code {code}" for host, code in codes.items() if code)
            if not failed:
                raise
            raise RuntimeError(f"{failed}; {error}") from error
        for process in started.values():
            process.wait(60)
    finally:
        over.set()
        undisturbed(lambda: _end_all(started.values()))


def _end_with(process: subprocess.Popen[bytes], program: Program, over: threading.Event) -> None:
    """Ends the ranks here once a node fails: they would wait for it for many minutes."""
    if not process.wait():
        return
    while not over.wait(0.5):
        for child in _torchruns_of(program):
            with contextlib.suppress(psutil.Error):
                child.terminate()


def _torchruns_of(program: Program) -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if set(program.arguments) <= set(child.cmdline()):
                found.append(child)
    return found


def _end_all(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
                break
