"""`python -m alignment_dags.ui`: Dagster's pages with its daemon, and MLflow's, on this project's home.

Ports are 3000 and 5000, or ALIGN_DAGSTER_PORT and ALIGN_MLFLOW_PORT; all ends when one ends, or with Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from resources.home import PROJECT, ensure_home, tracking_uri


def commands(dagster_port: str, mlflow_port: str) -> list[list[str]]:
    """The command lines of the servers; MLflow's pages are served here only when its store is local."""
    dagster = [sys.executable, "-m", "dagster", "dev", "--workspace", str(PROJECT / "workspace.yaml")]
    dagster += ["--host", "127.0.0.1", "--port", dagster_port]
    if tracking_uri().startswith("http"):
        return [dagster]
    mlflow = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking_uri()]
    mlflow += ["--host", "127.0.0.1", "--port", mlflow_port, "--workers", "1"]
    return [dagster, mlflow]


def main() -> int:
    dagster_port = os.environ.get("ALIGN_DAGSTER_PORT", "3000")
    mlflow_port = os.environ.get("ALIGN_MLFLOW_PORT", "5000")
    os.environ.setdefault("ALIGN_MLFLOW_UI", f"http://127.0.0.1:{mlflow_port}")
    ensure_home()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    servers = [subprocess.Popen(command, cwd=PROJECT) for command in commands(dagster_port, mlflow_port)]
    print(f"Dagster: http://127.0.0.1:{dagster_port}   MLflow: {os.environ['ALIGN_MLFLOW_UI']}", flush=True)
    try:
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
    except KeyboardInterrupt:
        pass
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait(timeout=30)
    return max((server.returncode or 0) for server in servers)


if __name__ == "__main__":
    sys.exit(main())
