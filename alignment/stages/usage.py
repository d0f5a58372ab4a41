"""What a stage took of its machine: recorded with its artifact, and told in numbers for plans, reports and MLflow."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass

from alignment.stages.stage import Number
from alignment.store import Commit, Summary

POOL = "ALIGN_POOL"  # the pool that a launch is for; it is handed on with the environment


def usage(ranks: int) -> dict[str, str]:
    """For the commit record: pool, ranks, GPUs, and the most memory that the first rank has held.

    That is memory of its GPU, or of its process where it never touched one.
    """
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_initialized()
    if torch is not None and on_gpu:
        peak = float(torch.cuda.max_memory_allocated())
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "pool": os.environ.get(POOL, ""),
        "ranks": str(ranks),
        "gpus": str(ranks if on_gpu else 0),
        "peak_memory_gib": f"{peak / 2**30:.3f}",
    }


class TokensSummary(Summary):
    """What stages that forward tokens say of them."""

    tokens: Number = None
    tokens_per_second: Number = None


@dataclass(frozen=True)
class Usage:
    """What the making of one artifact took. `gpu_seconds` counts each GPU for as long as the stage ran; None where the
    record is of a version that did not say. `cost` is in USD; None for a pool without a price."""

    seconds: float
    gpu_seconds: float | None
    peak_memory_gib: float | None
    tokens_per_second: float | None
    cost: float | None

    @classmethod
    def of(cls, commit: Commit, price_per_hour: float | None = None) -> Usage:
        """From a commit record and the price of a slot; tokens a second of a stage that says how many it took."""
        told, summary = commit.environment, TokensSummary.of(commit)
        speed = summary.tokens_per_second  # of the work alone, without loading the model
        if speed is None and summary.tokens and commit.seconds:
            speed = summary.tokens / commit.seconds
        return cls(
            seconds=commit.seconds,
            gpu_seconds=float(told["gpus"]) * commit.seconds if told.get("gpus") else None,
            peak_memory_gib=float(told["peak_memory_gib"]) if told.get("peak_memory_gib") else None,
            tokens_per_second=speed,
            cost=price_per_hour * commit.seconds / 3600 if price_per_hour else None,
        )

    def numbers(self) -> dict[str, float]:
        """What is known, by name."""
        named = {
            "seconds": self.seconds,
            "gpu_seconds": self.gpu_seconds,
            "peak_memory_gib": self.peak_memory_gib,
            "tokens_per_second": self.tokens_per_second,
            "cost_usd": self.cost,
        }
        return {name: round(value, 4) for name, value in named.items() if value is not None}
