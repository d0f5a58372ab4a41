"""For every Python process that finds this folder on its path: a training waits at each checkpoint it has saved.

It does while the file is there that TRAINING_HELD_BY names, so that a test kills it in mid-training at its leisure.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

RESUME = "alignment.training.resume"


class Held(MetaPathFinder):
    """Finds the module that marks checkpoints as complete, and makes what it marks wait."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != RESUME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(RESUME)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_held(module: ModuleType) -> None:
            load(module)
            mark_complete = module.mark_complete

            def mark_and_wait(checkpoint: Any) -> None:
                mark_complete(checkpoint)
                while Path(os.environ["TRAINING_HELD_BY"]).exists():
                    time.sleep(0.05)

            module.mark_complete = mark_and_wait  # type: ignore[attr-defined]

        spec.loader.exec_module = load_held  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Held())
