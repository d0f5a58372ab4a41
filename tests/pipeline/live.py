"""A live Dagster on the test's home: code server, daemon and webserver as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import dagster as dg
import psutil

from resources.home import PROJECT
from tests.loopback import answers, free_port, listens

Found = TypeVar("Found")

PATIENCE = 900.0  # seconds that anything waited for may take, on a machine with many times more to do than it can
PAUSE = 0.3


class Process:
    """A server and all that it starts, in a process group of its own; what it says goes to a file."""

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=PROJECT, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """As a power cut would: the process and everything in its group."""
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def stop(self) -> None:
        """Ends the process and its children, those in other groups too."""
        try:
            below = psutil.Process(self.popen.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            below = []
        self.popen.send_signal(signal.SIGINT)
        try:
            self.popen.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        for child in psutil.wait_procs(below, timeout=10)[1]:
            child.kill()

    def tail(self) -> str:
        return f"--- {self.name}\n" + "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])


class Live:
    """Starts and stops the three processes, and waits for what they bring about."""

    def __init__(self, instance: dg.DagsterInstance, folder: Path) -> None:
        self.instance = instance
        self.folder = folder
        self.code_port, self.web_port = free_port(), free_port()
        self.processes: dict[str, Process] = {}
        self.workspace = folder / "workspace.yaml"
        self.workspace.write_text(
            "load_from:\n  - grpc_server:\n      host: 127.0.0.1\n"
            f"      port: {self.code_port}\n      location_name: alignment_dags\n",
            encoding="utf-8",
        )

    def start(self) -> None:
        self.start_code_server()
        self.start_daemon()
        self.start_webserver()

    def start_code_server(self) -> None:
        """Loads the recipes that ALIGN_RECIPES names; start it again after a change to one."""
        grpc = ["dagster", "api", "grpc", "--module-name", "alignment_dags.definitions", "--location-name"]
        self._start("code", [*grpc, "alignment_dags", "--host", "127.0.0.1", "--port", str(self.code_port)])
        self.wait_for("the code server", lambda: listens(self.code_port))

    def start_daemon(self) -> None:
        self._start("daemon", ["dagster._daemon", "run", "--workspace", str(self.workspace)])

    def start_webserver(self) -> None:
        web = ["dagster_webserver", "--workspace", str(self.workspace), "--host", "127.0.0.1"]
        self._start("web", [*web, "--port", str(self.web_port)])
        self.wait_for("the webserver", lambda: answers(f"http://127.0.0.1:{self.web_port}/server_info"))

    def _start(self, name: str, command: list[str]) -> None:
        self.processes[name] = Process(name, command, self.folder)

    def stop(self) -> None:
        for name in ("web", "daemon", "code"):
            if name in self.processes:
                self.processes.pop(name).stop()

    def wait_for(self, what: str, look: Callable[[], Found | None], patience: float = PATIENCE) -> Found:
        """What `look` finds, once it finds something; fails with the processes' last words."""
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if found := look():
                return found
            for process in self.processes.values():
                assert process.popen.poll() is None, f"{process.name} ended\n{process.tail()}"
            time.sleep(PAUSE)
        told = "\n".join(process.tail() for process in self.processes.values())
        raise AssertionError(f"waited {patience:.0f} s for {what}\n{told}\n{self.runs()}")

    def runs(self) -> str:
        """All runs so far, one a line, newest first."""
        return "\n".join(
            f"{run.run_id[:8]} {run.status.value} {run.job_name} "
            f"{sorted(key.to_user_string() for key in run.asset_selection or ())} {run.tags}"
            for run in self.instance.get_runs()
        )

    def materializations(self, key: dg.AssetKey, shard: str) -> list[dict[str, object]]:
        """Metadata of every materialization of a shard that a run made, the latest first."""
        filter = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[shard])
        records = self.instance.fetch_materializations(filter, limit=100).records
        return [
            {name: value.value for name, value in record.asset_materialization.metadata.items()}
            for record in records
            if record.asset_materialization is not None and record.run_id
        ]
