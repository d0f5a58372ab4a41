"""`make ui`: both pages come up on this project's home, and nothing is left when it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest

from resources.home import PROJECT


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as page:
            return bool(page.status == 200)
    except OSError:
        return False


def test_both_pages_come_up_and_all_processes_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    dagster, mlflow = free_port(), free_port()
    monkeypatch.setenv("ALIGN_DAGSTER_PORT", str(dagster))
    monkeypatch.setenv("ALIGN_MLFLOW_PORT", str(mlflow))
    ui = subprocess.Popen([sys.executable, "-m", "alignment_dags.ui"], cwd=PROJECT)
    try:
        for url in (f"http://127.0.0.1:{dagster}/server_info", f"http://127.0.0.1:{mlflow}/health"):
            while not answers(url):
                assert ui.poll() is None
                time.sleep(0.2)
        below = psutil.Process(ui.pid).children(recursive=True)
        assert len(below) >= 3
    finally:
        ui.send_signal(signal.SIGTERM)
    assert ui.wait() == 0
    gone, alive = psutil.wait_procs(below, timeout=60)
    assert alive == []
    assert gone
