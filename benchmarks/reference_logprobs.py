"""How fast reference log-probs are: this project's scorer against TRL's precompute, and TRL at its best.

    python -m benchmarks.reference_logprobs --size cpu            # one command, one process
    python -m benchmarks.reference_logprobs --size 8b              # on a GPU, random weights

The same weights, pairs, dtype and threads go into all; the passes are run in turn, and of each the median
of three is printed. On a CPU time is CPU seconds, on a GPU wall seconds. TRL at its best gets the data
sorted by length and the fastest of a grid of batch sizes, all of which are printed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.logprobs.scorer import logps
from alignment.models.packing import forwarded, lay_out, pack
from alignment.models.size import peak_flops, scoring_flops
from benchmarks.preference_mix import SIZES, Size, pairs
from benchmarks.trl_pass import Pairs, trl_pass

DEFAULT_BATCH = 8
GRID = (1, 2, 4, 8, 16, 32)
CHECKED = 64
"""Pairs whose values are compared with the oracle's."""
GIB = 1 << 30

Logps = list[tuple[float, float]]


@dataclass
class Way:
    """One way to score all pairs, and what it took each time."""

    name: str
    run: Callable[[], Logps]
    seconds: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak: float = 0.0
    logps: Logps = field(default_factory=list)

    def measure(self, device: torch.device) -> None:
        with peak_memory(device) as peak:
            wall, cpu = time.perf_counter(), time.process_time()
            self.logps = self.run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            took = time.perf_counter() - wall
        self.wall.append(took)
        self.seconds.append(time.process_time() - cpu if device.type == "cpu" else took)
        self.peak = max(self.peak, peak[0])

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[float]]:
    """GiB above what was held at the start: the allocator's peak on a GPU, resident memory sampled on a CPU."""
    peak = [0.0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield peak
        peak[0] = (torch.cuda.max_memory_allocated() - before) / GIB
        return
    process, over = psutil.Process(), threading.Event()
    give_back()
    start = process.memory_info().rss

    def sample() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], (process.memory_info().rss - start) / GIB)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def give_back() -> None:
    """What the allocator keeps of earlier work would hide what the next one needs (glibc; elsewhere nothing)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def build(size: Size, device: torch.device, count: int) -> list[Any]:
    """Models over the same weights: TRL puts its own forward into the one it is given, and how a model's sequences
    go is decided once a model."""
    config = AutoConfig.for_model("llama", **size.config)
    dtype = getattr(torch, size.dtype)
    torch.manual_seed(0)
    with device:
        models = [
            AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
            for _ in range(count)
        ]
    for other in models[1:]:
        other.load_state_dict(models[0].state_dict(), assign=True)
        other.tie_weights()
    return models


def ours(model: Any, rows: Pairs, batch_tokens: int) -> Logps:
    flat = [row for pair in rows for row in pair]
    found = logps(model, flat, batch_tokens)
    return [(found[2 * place], found[2 * place + 1]) for place in range(len(rows))]


def oracle(model: Any, rows: Pairs) -> Logps:
    """One row at a time, full logits: float64 on a CPU, float32 on a GPU."""
    wide = torch.float64 if model.device.type == "cpu" else torch.float32
    exact = AutoModelForCausalLM.from_config(model.config, dtype=wide, attn_implementation="eager").to(model.device)
    exact.load_state_dict(model.state_dict())

    @torch.no_grad()
    def logp(row: Any) -> float:
        ids = torch.tensor([row.prompt_ids + row.completion_ids], device=model.device)
        each = torch.log_softmax(exact.eval()(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        return float(each[len(row.prompt_ids) - 1 :].double().sum())

    return [(logp(chosen), logp(rejected)) for chosen, rejected in rows]


def errors(found: Logps, exact: Logps) -> list[float]:
    """Of every sequence, relative to its sum."""
    return [abs(f - e) / abs(e) for a, b in zip(found, exact, strict=False) for f, e in zip(a, b, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--pairs", type=int, help="how many; the size's own by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grid", type=int, nargs="+", default=list(GRID), help="pairs a batch for TRL at its best")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="the size's own by default")
    chosen = parser.parse_args()
    size = SIZES[chosen.size]
    size = replace(size, pairs=chosen.pairs or size.pairs, dtype=chosen.dtype or size.dtype)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mine, theirs = build(size, device, 2)
    rows = pairs(size)
    name, padded = trl_pass(theirs)
    for others in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert len({(one.data_ptr(), one.dtype) for one in others}) == 1, "all score with the same weights in one dtype"

    threads = torch.get_num_threads()
    order = sorted(range(len(rows)), key=lambda place: -max(map(len, rows[place])))
    back = sorted(range(len(rows)), key=order.__getitem__)

    def sorted_pass(batch: int) -> Logps:
        done = padded([rows[place] for place in order], batch)
        return [done[place] for place in back]

    ways = [
        Way("ours", lambda: ours(mine, rows, size.batch_tokens)),
        Way(f"{name}, data order, batch {DEFAULT_BATCH}", lambda: padded(rows, DEFAULT_BATCH)),
        *(Way(f"{name}, sorted, batch {n}", lambda n=n: sorted_pass(n)) for n in chosen.grid),  # type: ignore[misc]
    ]
    warm = [rows[place] for place in order[:2]]
    ours(mine, warm, size.batch_tokens)
    padded(warm, 2)
    for _ in range(chosen.rounds):
        for way in ways:
            way.measure(device)
            assert torch.get_num_threads() == threads
    report(chosen.size, size, mine, rows, ways, oracle(mine, rows[:CHECKED]), device)


def report(
    label: str, size: Size, model: Any, rows: Pairs, ways: list[Way], exact: Logps, device: torch.device
) -> None:
    flat = [row for pair in rows for row in pair]
    passes = list(pack(flat, range(len(flat)), size.batch_tokens))
    once = sum(forwarded(flat, group) for groups in passes for group in groups)
    laid = sum(lay_out([[flat[i] for i in group] for group in groups], torch.device("cpu")).tokens for groups in passes)
    tokens = sum(map(len, flat))
    flops = scoring_flops(model, flat)
    assert flops is not None
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else ""
    peak = peak_flops(device, model.dtype)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    print(f"size {label}: {len(rows)} pairs, {tokens} tokens, {once} with prompts shared, {size.dtype}")
    print(
        f"machine: {gpu or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {versions}"
    )
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; padding waste {laid / once - 1:.2%}")
    print(f"seconds: {'wall' if gpu else 'CPU'}, median of {len(ways[0].seconds)}, alternated")
    best = min(ways[2:], key=lambda way: way.median)
    kind = "float32" if gpu else "float64"
    print(
        f"\n| way | seconds | ours is faster by | tokens/s (wall) | MFU | peak GiB | error to {kind}: largest | RMS |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for way in ways:
        wall = statistics.median(way.wall)
        mfu = f"{flops / wall / peak:.1%}" if peak else f"{flops / wall / 1e9:.0f} GFLOP/s"
        mark = " (its best)" if way is best else ""
        off = errors(way.logps, exact)
        ratio = way.median / ways[0].median
        print(
            f"| {way.name}{mark} | {way.median:.2f} | {ratio:.2f}× | {tokens / wall:.0f} | {mfu} "
            f"| {way.peak:.2f} | {max(off):.1e} | {math.sqrt(statistics.fmean(e * e for e in off)):.1e} |"
        )


if __name__ == "__main__":
    main()
