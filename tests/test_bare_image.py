"""What has to work where there is only torch, transformers, numpy and safetensors, as on a bare GPU image."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
ABSENT = ("pydantic", "trl", "peft", "datasets", "dagster", "mlflow", "pyarrow", "pandas", "scipy", "psutil")
OURS_HAVE_NO_USE_FOR = (*ABSENT, "fsspec", "filelock")
"""`fsspec` and `filelock` come with torch and huggingface_hub; the packed pass needs neither."""
BARE = [
    "alignment.data.tokens",
    *(f"alignment.models.{name}" for name in ("attention", "checkpoint", "forward", "packing", "size", "weights")),
    "alignment.methods.dpo",
    "alignment.logprobs.scorer",
    "benchmarks.preference_mix",
]

HIDING = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):  # hidden packages are not found, as where they are not installed
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {absent} else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""


def without(absent: tuple[str, ...], folder: Path) -> dict[str, str]:
    """An environment in which Python, and every Python that it starts, finds none of the packages."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HIDING.format(absent=set(absent)), encoding="utf-8")
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{PROJECT}", "PYTHON": sys.executable}


def test_the_packed_pass_is_imported_where_nothing_else_is_installed(tmp_path: Path) -> None:
    code = f"""
import importlib, importlib.util, sys
assert importlib.util.find_spec("pydantic") is None
for name in {BARE}:
    importlib.import_module(name)
print(sorted(set(sys.modules) & {set(OURS_HAVE_NO_USE_FOR)}))
"""
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=without(OURS_HAVE_NO_USE_FOR, tmp_path / "hiding"),
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == "[]"
