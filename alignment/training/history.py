"""Training history: the trainer's log records as plain numbers under our names, for plots and summaries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

NAMES = {
    "loss": "loss",
    "eval_loss": "held_out_loss",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
}
DIGITS = 6


def history(log_history: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """One record a logged step, in order: `step` and what was logged there, six significant digits.

    Each value is the mean since the record before it. What is not a finite number is left out.
    """
    records: dict[int, dict[str, float]] = {}
    for entry in log_history:
        values = {name: rounded(entry[key]) for key, name in NAMES.items() if _finite(entry.get(key))}
        if values:
            step = int(entry["step"])
            records.setdefault(step, {"step": step}).update(values)
    return [records[step] for step in sorted(records)]


def rounded(value: float) -> float:
    """A number with six significant digits."""
    return float(f"{float(value):.{DIGITS}g}")


def log_every(steps: int) -> int:
    """Optimiser steps between two records, so that a run leaves about 200."""
    return max(1, steps // 200)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
