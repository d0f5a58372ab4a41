"""What the server of step processes prepares for them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import psutil

KILLED_WHILE_IT_MIRRORS = """
import json, os, signal, sys
import alignment_dags.preloaded
from dagster._core.execution.compute_logs import mirror_stream_to_file
with mirror_stream_to_file(sys.stdout, sys.argv[1]) as pids:
    os.write(int(sys.argv[2]), json.dumps(pids).encode())
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_step_that_is_killed_leaves_no_process_that_mirrors_what_it_prints(tmp_path: Path) -> None:
    with (tmp_path / "pids").open("w+") as told:
        step = subprocess.run(
            [sys.executable, "-c", KILLED_WHILE_IT_MIRRORS, str(tmp_path / "out"), str(told.fileno())],
            pass_fds=[told.fileno()],
            stdout=subprocess.DEVNULL,
            check=False,
        )
        told.seek(0)
        (pid,) = json.load(told)  # one process: no second one that could be missing
    assert step.returncode < 0
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(timeout=60)
