"""`python -m alignment_dags.ui`: Dagster's pages with its daemon, and MLflow's, on this project's home.

Ports are 3000 and 5000, or ALIGN_DAGSTER_PORT and ALIGN_MLFLOW_PORT; all ends when one ends, or with Ctrl-C. Runs
that are going on do not: their workers finish by themselves, and are there when the pages are started again.
"""

from __future__ import annotations

import argparse
import glob
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import BinaryIO

from alignment.errors import BadInput
from alignment.store import Store
from alignment_dags.recipes import RECIPES, have_run, more_recipes, recipes_in_use
from resources.home import PROJECT, ensure_home, mlflow_page, tracking_uri
from resources.store import ArtifactStore

PATIENCE = 10.0  # seconds a server gets to end by itself
LOOK = 0.5  # seconds between two looks at the servers
HOST = "127.0.0.1"
PORTS = {"ALIGN_DAGSTER_PORT": 3000, "ALIGN_MLFLOW_PORT": 5000}


@dataclass
class Server:
    """One of the servers: its command line, and the page that answers when it is ready.

    What it prints goes on to our stderr until `stop`: then the libraries print tracebacks of their own interruption.
    """

    name: str
    command: list[str]
    address: str
    ready: str
    process: subprocess.Popen[bytes] | None = None
    answers: bool = False
    _quiet: threading.Event = field(default_factory=threading.Event)

    def start(self, environment: dict[str, str]) -> None:
        """Starts the process, in a session of its own."""
        self.process = subprocess.Popen(
            self.command,
            cwd=PROJECT,
            start_new_session=True,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self.process.stdout is not None
        threading.Thread(target=self._pass_on, args=(self.process.stdout,), daemon=True).start()

    def _pass_on(self, output: BinaryIO) -> None:
        for line in output:
            if not self._quiet.is_set():
                sys.stderr.buffer.write(line)
                sys.stderr.flush()

    def is_ready(self) -> bool:
        """Whether the page answers; a server that is still starting refuses the connection."""
        try:
            with urllib.request.urlopen(self.ready, timeout=2):
                return True
        except (OSError, HTTPException):
            return False

    def stop(self) -> None:
        """Ends the server with all it started: as Ctrl-C would, and by force if that takes too long."""
        self._quiet.set()
        if self.process is None:
            return
        for word in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, word)
                self.process.wait(timeout=PATIENCE)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def port_of(variable: str) -> int:
    """The port that an environment variable names, or its default; raises `BadInput` for what is no port."""
    given = os.environ.get(variable) or str(PORTS[variable])
    if not given.isdecimal() or not 0 < int(given) < 2**16:
        raise BadInput(f"'{given}' is no port: expected a number from 1 to 65535", field=variable)
    return int(given)


def check_free(variable: str, port: int) -> None:
    """Raises `BadInput` for a port that no server can have: then another program's page would answer, or none."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: what ended lately holds no port
        try:
            one.bind((HOST, port))
        except OSError as error:
            why = f"no server can listen on port {port}: {error.strerror}; give another port"
            raise BadInput(why, field=variable) from error


def servers(dagster_port: int, mlflow_port: int) -> list[Server]:
    """The servers; MLflow's pages are served here only when its store is local."""
    dagster = [sys.executable, "-m", "dagster", "dev", "--workspace", str(PROJECT / "workspace.yaml")]
    dagster += ["--host", HOST, "--port", str(dagster_port)]
    address = f"http://{HOST}:{dagster_port}"
    found = [Server("Dagster", dagster, address, f"{address}/server_info")]
    if not tracking_uri().startswith("http"):
        mlflow = [sys.executable, "-m", "mlflow", "server"]
        mlflow += ["--host", HOST, "--port", str(mlflow_port), "--workers", "1"]
        address = f"http://{HOST}:{mlflow_port}"
        found.append(Server("MLflow", mlflow, mlflow_page("experiments"), f"{address}/health"))
    return found


def bootstrap() -> None:
    """Makes Dagster's tables, before several processes would at once, and its pools those of pools.yaml."""
    from alignment_dags.run.workers import apply_pools
    from resources.databases import dagster_instance
    from resources.pools import load_pools

    with dagster_instance() as instance:
        apply_pools(instance, load_pools())


def choose_recipes(store: Store) -> list[str]:
    """Makes Dagster show the recipes that have run or have a schedule, with those elsewhere that have run; returns the
    names of those that it hides.

    Nothing is hidden if ALIGN_RECIPES says what to show, or if no recipe has run yet. Raises `BadInput` where
    Dagster could not show one.
    """
    recipes = recipes_in_use()
    if os.environ.get(RECIPES):
        return []
    ran, names = have_run(store), {recipe.name for recipe in recipes.values()}
    models, more = {recipe.model_name for recipe in recipes.values()}, set()
    for path, recipe in more_recipes().items():
        if recipe.name in ran - names and recipe.model_name not in models:  # recipes_in_use refuses two of a name
            names.add(recipe.name)
            models.add(recipe.model_name)
            more.add(path)
    if not ran & names:
        return []
    shown = {path for path, recipe in recipes.items() if recipe.name in ran or recipe.schedule is not None} | more
    os.environ[RECIPES] = os.pathsep.join(str(path.parent / glob.escape(path.name)) for path in sorted(shown))
    return sorted(recipe.name for path, recipe in recipes.items() if path not in shown)


def serve(started: list[Server]) -> int:
    """Starts the servers and prints each address when it answers; returns when one of them has ended by itself."""
    # by environment: the address may hold a password, and every user of the machine sees a process's arguments
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": tracking_uri()}
    for server in started:
        server.start(environment)
    names = " and ".join(server.name for server in started)
    print(f"{names}: starting; each address follows when it answers. Ctrl-C ends them.", flush=True)
    while all(server.process is not None and server.process.poll() is None for server in started):
        for server in started:
            if not server.answers and server.is_ready():
                server.answers = True
                print(f"{server.name}: {server.address}", flush=True)
        time.sleep(LOOK)
    return 1


def main(arguments: list[str] | None = None) -> int:
    """The servers until a signal or the end of one of them; 0 for a signal, 1 for an end, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m alignment_dags.ui",
        description="Start Dagster with its daemon, and MLflow, on this project's home (ALIGN_HOME, DAGSTER_HOME).",
        epilog="Ports: ALIGN_DAGSTER_PORT (3000) and ALIGN_MLFLOW_PORT (5000). ALIGN_RECIPES: the recipes to show;"
        " without it those that have run or have a schedule.",
    )
    parser.parse_args(arguments)
    for word in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(word, lambda *_: sys.exit(0))
    started: list[Server] = []
    try:
        ports = [port_of(variable) for variable in PORTS]
        started = servers(*ports)
        for variable, port, _ in zip(PORTS, ports, started, strict=False):  # MLflow's pages may be served elsewhere
            check_free(variable, port)
        os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # six processes that nothing here needs
        ensure_home()
        if hidden := choose_recipes(ArtifactStore().open()):
            every = PROJECT / "recipes" / "*.yaml"
            print(f"Not shown, as they have neither run nor a schedule: {', '.join(hidden)}.", flush=True)
            print(f"To show all recipes: {RECIPES}='{every}' make ui", flush=True)
        bootstrap()
        return serve(started)
    except KeyboardInterrupt:
        return 0
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        for word in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(word, signal.SIG_IGN)  # we are ending already
        for server in started:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
