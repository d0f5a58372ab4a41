"""The pure core on a newer Python than the tests', where there is one: `make newer`, or `PYTHON_NEXT=… make newer`.

Every file is compiled, warnings of the compiler being errors, and the tests run that need nothing but the standard
library: packages of this environment that are pure Python (pytest) are lent to it, compiled ones cannot be.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
FILES = ("alignment", "eval", "resources", "assets", "alignment_dags", "benchmarks", "tests")
PURE = (
    "tests/alignment/test_errors.py",
    *(f"tests/alignment/quickstart/test_{name}.py" for name in ("holdout", "records")),
    "tests/eval/judge/test_verdicts.py",
    "tests/test_bare_image.py::test_the_packed_pass_is_imported_where_nothing_else_is_installed",
    "tests/test_code_versions.py::test_a_definition_that_moves_to_another_file_changes_nothing",
)
VERSION = "import sys; print(*sys.version_info[:2])"


def version(python: str) -> tuple[int, ...]:
    """(3, 13), or () for what does not start."""
    try:
        told = subprocess.run([python, "-c", VERSION], capture_output=True, text=True, check=True, timeout=60)
        return tuple(map(int, told.stdout.split()))
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def newest() -> str | None:
    """The newest interpreter above this one, by name on the PATH or among pyenv's; None where there is none."""
    named = [found for minor in range(12, 20) if (found := shutil.which(f"python3.{minor}"))]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [*named, *map(str, sorted(pyenv.glob("3.*/bin/python")))]
    newer = [(version(python), python) for python in candidates]
    return max((pair for pair in newer if pair[0] > sys.version_info[:2]), default=(None, None))[1]


def main() -> int:
    python = os.environ.get("PYTHON_NEXT") or newest()
    if python is None:
        print(f"not run: no Python newer than {sys.version_info[0]}.{sys.version_info[1]} (PYTHON_NEXT=… names one)")
        return 0
    if not version(python):
        print(f"PYTHON_NEXT: {python} does not start", file=sys.stderr)
        return 2
    print(f"Python {'.'.join(map(str, version(python)))}: {python}", flush=True)
    packages = sysconfig.get_path("purelib")
    pytest = f"import sys; sys.path.append({packages!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {
            "PYTHONPATH": str(PROJECT),
            "PYTHONPYCACHEPREFIX": folder,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # some of this environment's are compiled
        }
        compiling = ["-W", "error", "-m", "compileall", "-q", *FILES]
        testing = ["-c", pytest, "--noconftest", "-p", "pytest_timeout", "-p", "no:cacheprovider", *PURE]
        for command in (compiling, testing):
            if code := subprocess.run([python, *command], cwd=PROJECT, env=env, check=False).returncode:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
