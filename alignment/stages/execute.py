"""Runs one stage: look the key up, and only on a miss build, commit and clear the work folder."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from alignment.errors import BadInput
from alignment.stages.stage import Context, R, Result, Stage
from alignment.stages.usage import usage
from alignment.store import Commit, CorruptArtifact, Store
from alignment.store.place import explain_no_space
from alignment.store.work import kept_work

STAGES = "alignment_dags.stages"
"""The group of entry points that name the stages, so that floors above and other packages add theirs."""
REQUEST_FILE = "request.json"
DAGSTER_RUN = "ALIGN_DAGSTER_RUN"  # the Dagster run that asks; a launch hands it on with its environment
RECIPE_NAME = "ALIGN_RECIPE_NAME"  # and the recipe it asks for
JOB = "ALIGN_JOB"  # the job of a cluster that runs the stage, which outlives the step that asked for it
KEY_IS_HELD = "ALIGN_KEY_IS_HELD"  # the key that the launcher of several ranks holds as long as they work
RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "lm-eval",
    "pyarrow",
    "alignment-dags",
)


@cache
def load_stage(name: str) -> Stage[Any]:
    """The stage of that name; raises `BadInput` naming those there are."""
    known = {point.name: point for point in importlib.metadata.entry_points(group=STAGES)}
    if name not in known:
        raise BadInput(f"no stage '{name}'; there are {', '.join(sorted(known))}")
    stage = known[name].load()
    if not isinstance(stage, Stage):
        raise BadInput(f"entry point {known[name].value} is not a Stage")
    return stage


def execute(stage: Stage[R], request: R, store: Store) -> Commit:
    """The artifact of a request, built here unless it is already committed.

    Under torchrun every rank calls this; rank 0 alone owns the attempt and commits it.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    key = stage.key(request)
    if rank and (found := store.find(stage.kind, key)) is not None:
        return found
    if rank:
        saves = os.environ.get("LOCAL_RANK") == "0"  # the first of its machine
        with tempfile.TemporaryDirectory() as scratch, kept_work(store, stage.kind, key, saves) as work:
            _run(stage, request, Context(store, Path(scratch), work, rank, world_size))
        commit = store.find(stage.kind, key)
        while commit is None:  # rank 0 commits once all ranks have done their share
            time.sleep(0.2)
            commit = store.find(stage.kind, key)
        return commit
    if os.environ.get(KEY_IS_HELD) == key:
        return store.find(stage.kind, key) or _build(stage, request, store, key, world_size)
    if (found := store.find(stage.kind, key)) is not None:
        return found
    with store.building(stage.kind, key):
        return store.find(stage.kind, key) or _build(stage, request, store, key, world_size)


def _build(stage: Stage[R], request: R, store: Store, key: str, world_size: int) -> Commit:
    started, began = time.monotonic(), datetime.now(UTC)
    attempt = store.begin(stage.kind, key)
    try:
        with explain_no_space(store.url), kept_work(store, stage.kind, key, saves=True) as work:
            text = request.model_dump_json(indent=1)
            (attempt.path / REQUEST_FILE).write_text(text, encoding="utf-8")
            result = _run(stage, request, Context(store, attempt.path, work, 0, world_size))
        if not (attempt.path / REQUEST_FILE).is_file():
            raise CorruptArtifact(f"{attempt.path}: was removed while it was built")
        commit = store.commit(
            attempt,
            digest=result.digest,
            stage=stage.name,
            code_version=stage.code_version,
            inputs=request.artifacts(),
            summary=result.recorded,
            environment=environment() | usage(world_size),
            started_at=began.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 3),
        )
    except BaseException:
        store.discard(attempt)
        raise
    store.clear_work(stage.kind, key)
    return commit


def _run(stage: Stage[R], request: R, context: Context) -> Result:
    """Raises `BadInput` for more processes than GPUs, and where a device's memory runs out: what the work folder holds
    by then is gone on from."""
    if stage.device == "gpu" and context.world_size > 1:
        require_devices(int(os.environ.get("LOCAL_WORLD_SIZE", context.world_size)))
    try:
        return stage.run(request, context)
    except RuntimeError as error:
        torch = sys.modules.get("torch")
        of_a_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
        if not (of_a_gpu or "can't allocate memory" in str(error)):  # as torch says it of a machine's
            raise
        what = f"{stage.name} ran out of memory on {_device()}"
        where = f" (process {context.rank + 1} of {context.world_size})" if context.world_size > 1 else ""
        raise BadInput(f"{what}{where}: `align plan` says what it takes, and with which changes it fits") from error


def require_devices(processes: int) -> None:
    """Raises `BadInput` where a machine with GPUs has fewer than processes: two on one GPU would share its memory."""
    import torch

    found = torch.cuda.device_count()
    if torch.cuda.is_available() and processes > found:
        raise BadInput(
            f"{processes} processes on a machine of which {found} GPUs are seen: set gpus_per_slot of the pool, or"
            " processes, to what there is",
            field="pools",
        )


def make_again(stage: Stage[R], request: R, store: Store, out: Path) -> Result:
    """Makes a request's result once more, into an empty folder beside the store, and commits nothing.

    Inputs come from the store, cached log-probs included; nothing is resumed. Under torchrun every rank calls this, and
    rank 0 fills the folder. Raises `BadInput` where the folder holds something.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not rank:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise BadInput("is not an empty folder", file=str(out), field="--out")
        out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch, explain_no_space(str(out)):
        (work := Path(scratch, "work")).mkdir()
        (aside := Path(scratch, "aside")).mkdir()  # what other ranks write is thrown away
        return _run(stage, request, Context(store, aside if rank else out, work, rank, world_size))


def environment() -> dict[str, str]:
    """Python, packages, device, source revision and who asked, as the commit records them."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": _device(),
        "git": _git_revision(),
        "dagster_run": os.environ.get(DAGSTER_RUN, ""),
        "recipe": os.environ.get(RECIPE_NAME, ""),
        **{name: version for name in RECORDED_PACKAGES if (version := _version(name))},
    }


@cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@cache
def _git_revision() -> str:
    here = Path(__file__).parent
    try:
        described: Any = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return str(described.stdout).strip()


def _device() -> str:
    torch = sys.modules.get("torch")  # a stage that never touched a GPU ran on none, whatever the machine has
    if torch is not None and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    return f"cpu ({os.cpu_count()} cores)"
