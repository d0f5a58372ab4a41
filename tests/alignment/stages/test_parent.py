"""torchrun's ranks end with torchrun, and torchrun with the step that started it, however these end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from alignment.stages.parent import PARENT, end_with_parent
from resources.home import PROJECT

RANK = """
import os, time
from alignment.stages.parent import PARENT, end_with_parent
end_with_parent()
assert PARENT not in os.environ
print(os.getpid(), flush=True)
time.sleep(600)
"""
STEP = """
import os, subprocess, sys
environment = dict(os.environ, ALIGN_PARENT=str(os.getpid()))
ranks = ["-m", "alignment.stages.ranks", "--nproc-per-node", "2", "--standalone", sys.argv[1]]
subprocess.run([sys.executable, *ranks], env=environment)
"""
PATIENCE = 30


@pytest.mark.parametrize("victim", ["the step", "torchrun"])
def test_what_works_for_a_process_that_was_killed_ends(victim: str, tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", STEP, str(script)]
    step = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    assert step.stdout is not None
    ranks = [psutil.Process(int(step.stdout.readline())) for _ in range(2)]
    (torchrun,) = psutil.Process(step.pid).children()
    assert {rank.ppid() for rank in ranks} == {torchrun.pid}

    (step if victim == "the step" else torchrun).kill()
    _, alive = psutil.wait_procs([torchrun, *ranks], PATIENCE)
    step.kill()
    step.communicate()
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


def test_a_process_that_nobody_waits_for_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARENT, raising=False)
    code = "import os; from alignment.stages.parent import end_with_parent; end_with_parent(); import threading"
    code += "; print(threading.active_count())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert told.stdout.strip() == "1"
    end_with_parent()
