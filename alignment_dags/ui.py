"""`python -m alignment_dags.ui`: Dagster's pages with its daemon, and MLflow's, on this project's home.

Ports are 3000 and 5000, or ALIGN_DAGSTER_PORT and ALIGN_MLFLOW_PORT; all ends when one ends, or with Ctrl-C. Runs
that are going on do not: their workers finish by themselves, and are there when the pages are started again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import dagster as dg

from alignment_dags.run.workers import apply_pools
from resources.home import PROJECT, ensure_home, tracking_uri
from resources.pools import load_pools

PATIENCE = 10.0  # seconds a server gets to end by itself


def commands(dagster_port: str, mlflow_port: str) -> list[list[str]]:
    """The command lines of the servers; MLflow's pages are served here only when its store is local."""
    dagster = [sys.executable, "-m", "dagster", "dev", "--workspace", str(PROJECT / "workspace.yaml")]
    dagster += ["--host", "127.0.0.1", "--port", dagster_port]
    if tracking_uri().startswith("http"):
        return [dagster]
    mlflow = [sys.executable, "-m", "mlflow", "server"]
    mlflow += ["--host", "127.0.0.1", "--port", mlflow_port, "--workers", "1"]
    return [dagster, mlflow]


def stop(server: subprocess.Popen[bytes]) -> None:
    """Ends a server with all it started: as Ctrl-C would, and by force if that takes too long."""
    for word in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, word)
            server.wait(timeout=PATIENCE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def bootstrap() -> None:
    """Makes Dagster's tables, before several processes would at once, and its pools those of pools.yaml."""
    with dg.DagsterInstance.get() as instance:
        apply_pools(instance, load_pools())


def main() -> int:
    dagster_port = os.environ.get("ALIGN_DAGSTER_PORT", "3000")
    mlflow_port = os.environ.get("ALIGN_MLFLOW_PORT", "5000")
    os.environ.setdefault("ALIGN_MLFLOW_UI", f"http://127.0.0.1:{mlflow_port}")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # six more processes that nothing here needs
    ensure_home()
    bootstrap()
    for word in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(word, lambda *_: sys.exit(0))
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands(dagster_port, mlflow_port):
            # by environment: the address may hold a password, and every user of the machine sees a process's arguments
            environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": tracking_uri()}
            servers.append(subprocess.Popen(command, cwd=PROJECT, start_new_session=True, env=environment))
        print(f"Dagster: http://127.0.0.1:{dagster_port}   MLflow: {os.environ['ALIGN_MLFLOW_UI']}", flush=True)
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
        return 1  # a server ended by itself
    except KeyboardInterrupt:
        return 0
    finally:
        for server in servers:
            stop(server)


if __name__ == "__main__":
    sys.exit(main())
