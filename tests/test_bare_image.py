"""What has to work where there is only torch, transformers, numpy and safetensors, as on a bare GPU image."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
ABSENT = ("pydantic", "trl", "peft", "datasets", "dagster", "mlflow", "pyarrow", "pandas", "scipy", "psutil")
OURS_HAVE_NO_USE_FOR = (*ABSENT, "fsspec", "filelock")
"""`fsspec` and `filelock` come with torch and huggingface_hub; the packed pass needs neither."""
BARE = [
    "alignment.data.tokens",
    *(
        f"alignment.models.{name}"
        for name in (
            "attention",
            "checkpoint",
            "forward",
            "loading",
            "memory",
            "packing",
            "recompute",
            "rope",
            "runner",
            "shape",
            "sharding",
            "size",
            "weights",
        )
    ),
    "alignment.methods.dpo",
    "alignment.logprobs.scorer",
    "alignment.training.packed_step",
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


def test_the_gpu_benchmark_runs_there_at_its_smallest_size(tmp_path: Path) -> None:
    told = subprocess.run(
        ["bash", "benchmarks/gpu.sh", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
        env=without(ABSENT, tmp_path / "hiding") | {"SIZE": "tiny", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert told.returncode == 0, told.stdout + told.stderr
    parts = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    assert list(parts) and {part["status"] for part in parts.values()} == {"complete"}
    of_packed_passes = {"environment", "agreement", "step", "values", "company", "speed", "attention", "head"}
    of_packed_passes |= {"capped"}
    assert parts.keys() == of_packed_passes | {"trl", "whole", "memory", "resume"}
    for name in ("whole", "memory", "resume"):
        assert all("gpu_wheels.sh brings it along" in row["skipped"] for row in parts[name]["rows"])
    assert [row["way"] for row in parts["trl"]["rows"][:2]] == ["ours", "padded (as TRL), data order, batch 8"]
    same = [row for row in parts["agreement"]["rows"] if row["compared"].startswith("step")]
    assert len(same) == 6 and not any(row["differing"] for row in same)
    gradients = [row for row in parts["agreement"]["rows"] if row["compared"].startswith("gradient")]
    assert gradients and all(row["relative"] < (1e-5 if row["dtype"] == "float32" else 0.1) for row in gradients)
    assert all(row["pairs_per_second"] > 0 for row in parts["step"]["rows"])
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert all(f"## {name}: complete" in summary for name in parts)
    exact = [row for row in parts["values"]["rows"] if row["dtype"] == "float32"]
    assert exact and all(row["largest_nat"] < 1e-3 for row in exact)  # 1e-6 of a sum of hundreds of nats
    packed = [row for row in parts["company"]["rows"] if row["compared"].startswith("packed")]
    assert packed and not any(row["differing"] for row in packed)
    filled = [row for row in packed if "filled" in row["compared"]]
    assert {row["sequences"] for row in filled} == {row["sequences"] for row in packed}
    assert all(row["tokens_per_second"] > 0 for row in parts["speed"]["rows"])
    ours = [row for row in parts["attention"]["rows"] if row["way"].startswith("ours")]
    assert ours and all(row["error"] < 0.02 and row["gradient_error"] < 0.02 for row in ours)


@pytest.mark.soak
def test_whole_steps_are_measured_where_the_packages_are(tmp_path: Path) -> None:
    """Steps beside TRL's, with an adapter, by what activations are kept, and interrupted."""
    code = f"""
import sys
from benchmarks.gpu import __main__ as gpu
gpu.LIMITS = dict.fromkeys(("trl", "whole", "memory", "resume"), 300)
sys.argv = ["gpu", "--size", "tiny", "--minutes", "20", "--out", {str(tmp_path)!r}]
sys.exit(gpu.main())
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PROJECT)
    assert told.returncode == 0, told.stdout + told.stderr
    rows = {path.stem: json.loads(path.read_text())["rows"] for path in tmp_path.glob("*.json")}
    assert [row["way"] for row in rows["trl"] if row["measured"] == "step"][1].startswith("TRL ")
    assert [row["kind"] for row in rows["whole"]] == ["full", "full, selective", "LoRA of rank 16"]
    planned = [row["planned_gib"] for row in rows["memory"]]
    assert planned == sorted(planned, reverse=True) and len(planned) == 3
    assert [row["differing"] for row in rows["resume"]] == [0]


def test_a_part_that_fails_or_hangs_leaves_its_figures_and_does_not_stop_the_next(tmp_path: Path) -> None:
    code = f"""
import signal, sys
from benchmarks.gpu import __main__ as gpu

def fails(record, *_):
    record.add(figure=1)
    raise ValueError("no such kernel")

def hangs(record, *_):
    record.add(figure=2)
    signal.pause()

gpu.BY_SHAPE = {{"values": fails, "company": hangs, "head": lambda record, *_: record.add(figure=3)}}
gpu.LIMITS = {{"values": 60, "company": 5, "head": 60}}
sys.argv = ["gpu", "--size", "tiny", "--out", {str(tmp_path)!r}]
sys.exit(gpu.main())
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PROJECT)
    assert told.returncode == 1
    assert "not complete: values, company" in told.stdout
    assert "company: figure 2\n" in told.stdout, "a row is printed as soon as it is known"
    parts = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert {name: part["status"] for name, part in parts.items()} == {
        "values": "failed: RuntimeError: tiny, see its row",
        "company": "stopped after 5 s",
        "head": "complete",
    }
    assert [parts[name]["rows"] for name in ("values", "company", "head")] == [
        [{"figure": 1}, {"shape": "tiny", "failed": "ValueError: no such kernel"}],
        [{"figure": 2}],
        [{"figure": 3}],
    ]


def test_all_parts_together_take_no_longer_than_they_may_however_long_imports_take(tmp_path: Path) -> None:
    """The clock starts with Python: on a cold machine torch alone takes half a minute."""
    code = f"""
import signal, sys
from benchmarks.gpu import __main__ as gpu

def hangs(record, name, *_):
    (record.path.parent / ".scratch").mkdir()
    signal.pause()

gpu.BEGAN -= 35  # seconds that imports took
gpu.BY_SHAPE, gpu.LIMITS = dict.fromkeys(("values", "company"), hangs), {{"values": 60, "company": 60}}
gpu.KILLED, gpu.SPARE, gpu.SHORTEST = 1, 2, 1
sys.argv = ["gpu", "--size", "tiny", "--minutes", "1", "--out", {str(tmp_path)!r}]
sys.exit(gpu.main())
"""
    began = time.monotonic()
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PROJECT)
    assert time.monotonic() - began < 60 - 35 + 5, told.stdout
    assert told.returncode == 1 and "## company: no time was left" in told.stdout
    assert not (tmp_path / ".scratch").exists(), "what a part wrote for itself goes with it"


def test_a_size_for_a_gpu_says_so_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from benchmarks.gpu.tools import the_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert the_device("tiny").type == "cpu"
    with pytest.raises(RuntimeError, match="size 8b needs a GPU, and torch finds none: SIZE=tiny runs on a CPU"):
        the_device("8b")
