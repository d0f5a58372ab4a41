"""For every Python process that finds this folder on its path: a training waits at each checkpoint it has saved, and a
scoring after each pass that it has kept.

They do while the file is there that TRAINING_HELD_BY or SCORING_HELD_BY names, so that a test kills them in between at
its leisure. A scoring that waits says so in a file beside it, whose name ends with its rank.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


def wait(variable: str) -> None:
    """Until there is no file of that name."""
    while Path(os.environ[variable]).exists():
        time.sleep(0.05)


def hold_training(module: ModuleType) -> None:
    """What marks checkpoints as complete makes what it marks wait."""
    mark_complete = module.mark_complete

    def mark_and_wait(checkpoint: Any) -> None:
        mark_complete(checkpoint)
        wait("TRAINING_HELD_BY")

    module.mark_complete = mark_and_wait  # type: ignore[attr-defined]


def hold_scoring(module: ModuleType) -> None:
    """What keeps log-probs waits, and does so after each pass."""
    held = Path(os.environ["SCORING_HELD_BY"])
    if not held.exists():
        return
    module.PART_SEQUENCES = 1  # type: ignore[attr-defined]
    add_values = module.LogprobCache.add_values

    def add_and_wait(cache: Any, values: Any) -> None:
        add_values(cache, values)
        if values and held.exists():
            held.with_name(f"{held.name}-{os.environ.get('RANK', '0')}").touch()
            wait("SCORING_HELD_BY")

    module.LogprobCache.add_values = add_and_wait


HELD: dict[str, tuple[str, Callable[[ModuleType], None]]] = {
    "alignment.training.resume": ("TRAINING_HELD_BY", hold_training),
    "alignment.logprobs.reference": ("SCORING_HELD_BY", hold_scoring),
}
"""Module to the variable that holds it, and how."""


class Held(MetaPathFinder):
    """Finds the modules that are held, and changes them once they are loaded."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        variable, hold = HELD.pop(name, ("", None))
        if hold is None or variable not in os.environ:
            return None
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_held(module: ModuleType) -> None:
            load(module)
            hold(module)

        spec.loader.exec_module = load_held  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Held())
