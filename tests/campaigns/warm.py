"""`align` without the seconds of its imports: a process that has made them forks one for every command.

The forked process leads a session of its own, and its steps are forked from a server of Dagster's own kind, which is
itself forked and not started: all else is as a person's `align`, its processes, locks, files and deaths included.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

from resources.home import PROJECT
from tests.campaigns.planted import plant

IMPORTED = (
    "torch",
    "transformers",
    "trl",
    "datasets",
    "mlflow",
    "dagster",
    "alignment_dags.cli.app",
    "alignment_dags.run.run",
    "alignment_dags.recipes",
    "alignment_dags.nights.definitions",
    "alignment_dags.source.sensor",
    "alignment_dags.retention.collect",
    "assets.building.factory",
    "assets.registered_model",
    "mlflow.transformers",
    "mlflow.pyfunc",
    "transformers.models.llama.modeling_llama",
    "alignment.training.preference_trainer",
    "alignment.stages.__main__",
    "eval.report.page",
    "lm_eval.tasks",
    "lm_eval.models.huggingface",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "scipy.special",
    "scipy.optimize",
    "peft",
    "alembic",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
)
LOOK = 0.02
"""Seconds between two looks at what runs."""
MESSAGES = 200
"""The file descriptor of the server's answers."""


def serve() -> None:
    """Forks an `align` for every line on stdin, and writes its pid, and later its exit code, to stdout."""
    os.dup2(1, MESSAGES)  # for these alone: some imports print
    os.dup2(2, 1)
    for name in IMPORTED:
        importlib.import_module(name)
    _import_stages()
    _say({"ready": True})
    running: set[int] = set()
    text = b""
    while True:
        if select.select([0], [], [], LOOK if running else None)[0]:
            if not (data := os.read(0, 1 << 20)):
                return
            *lines, text = (text + data).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                if not (pid := os.fork()):
                    _become(asked)
                running.add(pid)
                _say({"pid": pid})
        for pid in [*running]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                _say({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _import_stages() -> None:
    from importlib.metadata import entry_points

    for point in entry_points(group="alignment_dags.stages"):
        point.load()


def _say(message: dict[str, Any]) -> None:
    os.write(MESSAGES, json.dumps(message).encode() + b"\n")


def _become(asked: dict[str, Any]) -> NoReturn:
    """Runs the command in this process and ends it."""
    code = 70
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number, place in enumerate((nothing, log, log)):
            os.dup2(place, number)
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv = ["align", *asked["arguments"]]
        plant(os.environ)
        if asked["arguments"][0] == "run":
            os.environ["ALIGN_RECIPES"] = asked["arguments"][1]  # as the command does before its server starts
            _fork_the_server_of_steps()
        from alignment_dags.cli import main

        main()
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _fork_the_server_of_steps() -> None:
    """Forks what `multiprocessing` would start: while this process has one thread, and its imports are done."""
    import socket
    from multiprocessing import connection, forkserver, resource_tracker

    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    resource_tracker.ensure_running()
    with socket.socket(socket.AF_UNIX) as listener:
        address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
        listener.bind(address)
        listener.listen()
        ends, ours = os.pipe()
        if not (pid := os.fork()):
            os.close(ours)
            try:
                forkserver.main(os.dup(listener.fileno()), ends, ["alignment_dags.definitions"])
            finally:
                os._exit(0)
        os.close(ends)
    server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = address, ours, pid


class Warm:
    """The client of such a process; several commands may run at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: dict[int, WarmRun] = {}
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.campaigns.warm import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=PROJECT,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._asking = threading.Lock()
        assert self._answers.get(timeout=600) == {"ready": True}

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        for run in self._runs.values():
            run.kill()
        self._process.stdin.close()
        self._process.wait(60)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "ended" in message:
                run = self._runs[message["ended"]]
                run.code = message["code"]
                run.over.set()
            elif "pid" in message:
                pid = message["pid"]
                self._runs[pid] = run = WarmRun(pid, self._log)
                self._answers.put({"run": run})
            else:
                self._answers.put(message)

    def start(self, *arguments: str, **environment: str) -> WarmRun:
        """Starts `align` with these arguments; `environment` is added to this process's."""
        assert self._process.stdin is not None
        with self._asking:
            self._log = self.folder / f"align-{len(self._runs)}.log"
            asked = {
                "arguments": arguments,
                "environment": {**os.environ, **environment},
                "log": str(self._log),
            }
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
            run: WarmRun = self._answers.get(timeout=60)["run"]
        return run


class WarmRun:
    """A command that runs, or ran; its output is in `log`."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self.code: int | None = None
        self.over = threading.Event()

    def lines(self) -> list[str]:
        """What it has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []

    def wait_for_lines(self, count: int) -> bool:
        """Whether it said so many lines before it ended."""
        while len(self.lines()) < count:
            if self.over.wait(LOOK):
                return False
        return True

    def wait_for(self, words: str) -> None:
        """Returns once a line has these words."""
        while not any(words in line for line in self.lines()):
            assert not self.over.wait(LOOK), f"ended with {self.code} before it said '{words}':\n{self.tail()}"

    def end(self) -> int:
        """Its exit code, once it has ended; minus the signal that killed it."""
        while not self.over.wait(1.0):
            pass
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        """Kills its session's processes, if it has not ended."""
        if not self.over.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def tail(self) -> str:
        """Its last words."""
        return "\n".join(self.lines()[-40:])
