"""What the parts share: a record that outlives a stop, a clock, random models, differences between values."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.preference_mix import SIZES, Size

GIB = 1 << 30


def _sized(name: str, layers: int, pairs: int, batch_tokens: int) -> Size:
    size = SIZES[name]
    return replace(size, config=size.config | {"num_hidden_layers": layers}, pairs=pairs, batch_tokens=batch_tokens)


_HALF, _EIGHT = _sized("0.5b", 24, 256, 16_384), _sized("8b", 8, 128, 16_384)
PRESETS: dict[str, dict[str, Size]] = {
    "tiny": {"tiny": _sized("tiny", 2, 8, 512)},
    "0.5b": {"0.5b": _HALF},
    "8b": {"8b": _EIGHT},
    "gpu": {"0.5b": _HALF, "8b": _EIGHT},
}
"""Shapes by name: all 24 layers of 0.5B; 8 of the 32 layers of 8B, so that a backward pass fits beside them."""

LOGIT_SPREAD = 3.0
"""Standard deviation of the logits, about a trained model's. A fresh model's logits are nearly equal, and what
rounding does to a log-probability would look smaller than it is."""


def the_device(preset: str) -> torch.device:
    """The GPU; a CPU for the size `tiny` alone."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if preset != "tiny":
        raise RuntimeError(f"size {preset} needs a GPU, and torch finds none: SIZE=tiny runs on a CPU")
    return torch.device("cpu")


def scratch_of(out: Path) -> Path:
    """Where a part writes what nobody reads afterwards; it is removed when the part ends, however it ends."""
    return out / ".scratch"


def shown(cell: Any) -> str:
    """A figure as a person reads it."""
    return f"{cell:.4g}" if isinstance(cell, float) else "" if cell is None else str(cell)


class Record:
    """The figures of one part, printed and in OUT/<part>.json whenever one is added: a part that is stopped leaves what
    it had."""

    def __init__(self, out: Path, part: str) -> None:
        self.path = out / f"{part}.json"
        self.rows: list[dict[str, Any]] = []
        self.began = time.monotonic()
        self.close("unfinished")

    def add(self, **figures: Any) -> None:
        self.rows.append(figures)
        self.close("unfinished")
        told = ", ".join(f"{name} {shown(cell)}" for name, cell in figures.items() if cell is not None)
        print(f"{self.path.stem}: {told}", flush=True)

    def close(self, status: str) -> None:
        seconds = round(time.monotonic() - self.began, 2)
        text = json.dumps({"part": self.path.stem, "status": status, "seconds": seconds, "rows": self.rows}, indent=1)
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text + "\n", encoding="utf-8")
        fresh.replace(self.path)


def timed(run: Callable[[], Any], device: torch.device, rounds: int = 5, at_most: float = 3.0) -> float:
    """Median seconds of a few runs after one that is not counted; fewer where they take more than `at_most` in all."""

    def once() -> float:
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    taken = [once()]
    while len(taken) < rounds and sum(taken) < at_most:
        taken.append(once())
    return statistics.median(taken)


def peak_gib(run: Callable[[], Any], device: torch.device) -> float | None:
    """GiB that the allocator held at most above what it held before; None on a CPU."""
    if device.type != "cuda":
        run()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / GIB


def build(size: Size, dtype: torch.dtype, device: torch.device) -> Any:
    """A random Llama of this shape; its weights are bfloat16 numbers in every precision, so that values compare."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **size.config)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    with torch.no_grad():
        model.model.norm.weight.fill_(LOGIT_SPREAD / (config.initializer_range * math.sqrt(config.hidden_size)))
    return model.to(dtype)


def differences(found: Sequence[float], expected: Sequence[float]) -> dict[str, Any]:
    """Between two lists of log-probabilities, in nats a sequence; `differing` counts what is not equal bit for bit."""
    apart = [a - b for a, b in zip(found, expected, strict=True)]
    return {
        "sequences": len(apart),
        "differing": sum(value != 0 for value in apart),
        "largest_nat": max(map(abs, apart)),
        "rms_nat": math.sqrt(statistics.fmean(value * value for value in apart)),
        "mean_nat": statistics.fmean(apart),
    }


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
