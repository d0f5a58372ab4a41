from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def newer_python(**env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.newer_python"]
    here = {name: value for name, value in os.environ.items() if name != "PYTHON_NEXT"} | env
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT, env=here)


def test_where_there_is_no_newer_python_it_says_that_nothing_was_run(tmp_path: Path) -> None:
    told = newer_python(PATH=str(tmp_path), PYENV_ROOT=str(tmp_path))
    assert told.returncode == 0
    assert told.stdout.startswith("not run: no Python newer than")


def test_an_interpreter_that_does_not_start_is_an_error() -> None:
    told = newer_python(PYTHON_NEXT="/no/such/python")
    assert told.returncode == 2
    assert told.stderr == "PYTHON_NEXT: /no/such/python does not start\n"
