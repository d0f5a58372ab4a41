"""A job for a worker process: its step starts a helper, says so, and works until it is let go."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg

FOLDER = "WORKER_TEST_FOLDER"


@dg.op
def wait_to_be_let_go() -> None:
    folder = Path(os.environ[FOLDER])
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "helper.partial").write_text(str(helper.pid))
    (folder / "helper.partial").rename(folder / "helper")
    try:
        while not (folder / "go").exists():
            time.sleep(0.05)
    finally:
        helper.kill()
        helper.wait()


@dg.job(executor_def=dg.in_process_executor)
def waiting() -> None:
    wait_to_be_let_go()
