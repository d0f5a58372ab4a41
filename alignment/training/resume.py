"""Trainer checkpoints that an interrupted run may be resumed from: only those written to their end."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path

from alignment.models.weights import not_finite
from alignment.store.place import write_durably
from alignment.store.work import MARKER

log = logging.getLogger(__name__)

TRAINING_FILE = "training.json"
"""What is no tensor in a checkpoint; one of an earlier version has pickled files in its place."""
NAME = re.compile(r"checkpoint-(\d+)")


def step_of(checkpoint: Path) -> int:
    """Optimiser steps done when the checkpoint was written."""
    match = NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint}: not a trainer checkpoint's name")
    return int(match.group(1))


def checkpoints(folder: Path) -> list[Path]:
    """Every trainer checkpoint of a folder, whole or not, newest first."""
    found = [path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def last_complete(folder: Path) -> Path | None:
    """The newest checkpoint that carries its marker, every file of the size the marker names, and finite weights.

    One that an earlier version pickled is not read: the training starts again, and says so.
    """
    whole = (path for path in checkpoints(folder) if _is_complete(path))
    return next((path for path in whole if _is_readable(path) and _is_finite(path)), None)


def mark_complete(checkpoint: Path) -> None:
    """Syncs a checkpoint's files, then writes the marker that makes it one to resume from."""
    sizes = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != MARKER:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            sizes[path.relative_to(checkpoint).as_posix()] = path.stat().st_size
    partial = checkpoint / f".{MARKER}"
    write_durably(partial, json.dumps(sizes).encode())
    partial.replace(checkpoint / MARKER)


def unmark(checkpoint: Path) -> None:
    """Before a checkpoint is written (again): while that lasts it is not one to resume from."""
    (checkpoint / MARKER).unlink(missing_ok=True)


def keep_only(checkpoint: Path) -> None:
    """Removes every other checkpoint beside a complete one."""
    for other in checkpoints(checkpoint.parent):
        if other != checkpoint:
            unmark(other)
            shutil.rmtree(other)


def _is_readable(checkpoint: Path) -> bool:
    if (checkpoint / TRAINING_FILE).is_file():
        return True
    log.warning("%s: an earlier version pickled it, and nothing pickled is read: it is not resumed from", checkpoint)
    return False


def _is_finite(checkpoint: Path) -> bool:
    """A run that diverged, under a version that noticed it only at the end, left one that nothing recovers from."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        if (tensor := not_finite(path)) is not None:
            log.warning("%s: %s is not finite, so it is not resumed from", checkpoint, tensor)
            return False
    return True


def _is_complete(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return all(
        (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size for name, size in sizes.items()
    )
