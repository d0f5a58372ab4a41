"""How fast one DPO step is: this project's packed step against TRL's, and TRL at its best.

    OMP_NUM_THREADS=1 python -m benchmarks.dpo_step --size cpu     # one command, one process
    python -m benchmarks.dpo_step --size 8b                        # on a GPU, random weights

A step is forward and backward of `--pairs` pairs into gradients; the optimiser's own step counts for none. The same
weights, rows, dtype and threads go into all, and none recomputes activations. Steps are run in turn, and of each the
median of three is printed; of TRL's grid of micro batches over rows sorted by length only the fastest is run three
times. On a CPU time is CPU seconds, on a GPU wall seconds. Gradients are compared with those of a step in float64 (a
GPU's: float32) whose sequences go one at a time, unpadded, through the model's own eager attention.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers
import trl
from transformers import AutoModelForCausalLM

from alignment.data.tokens import TokenSequence
from alignment.logprobs.scorer import logps
from alignment.methods.dpo import Dpo
from alignment.models.attention import shared_prompts
from alignment.models.runner import Runner
from alignment.models.size import peak_flops, scoring_flops
from alignment.training import packed_step
from benchmarks.preference_mix import SIZES, Size, StepRow, pairs
from benchmarks.reference_logprobs import GRID, build, peak_memory
from benchmarks.trl_pass import trl_step

BETA = 0.1
AS_IT_COMES = (4, 8)
"""Pairs a micro batch in the order of the data; the last is TRL's default."""
PAIRS = 32
"""Pairs of a step, unless the size has fewer."""
MOVED = 0.3
"""How far reference and policy are apart, relative to the weights' spread: margins of about a nat."""


@dataclass
class Way:
    """One way to take the step: what it took each time, and what came out the first time."""

    name: str
    model: Any
    run: Callable[[], float]
    seconds: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak: float = 0.0
    loss: float = math.nan
    gradient: list[torch.Tensor] = field(default_factory=list)

    def measure(self, device: torch.device) -> None:
        self.model.zero_grad(set_to_none=True)
        with peak_memory(device) as peak:
            wall, cpu = time.perf_counter(), time.process_time()
            self.loss = self.run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            took, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.wall.append(took)
        self.seconds.append(cpu if device.type == "cpu" else took)
        self.peak = max(self.peak, peak[0])
        self.gradient = self.gradient or [weight.grad.cpu() for weight in self.model.parameters()]
        self.model.zero_grad(set_to_none=True)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class Outcome:
    """All ways over the same step, ours first; `exact` is the oracle's loss and gradient."""

    rows: list[StepRow]
    ways: list[Way]
    as_it_comes: list[Way]
    best: Way
    exact: tuple[float, list[torch.Tensor]]

    def gradient_error(self, way: Way) -> float:
        """‖g − g′‖ / ‖g′‖ over all weights."""
        apart = sum(float((a.double() - b).square().sum()) for a, b in zip(way.gradient, self.exact[1], strict=True))
        return math.sqrt(apart / sum(float(each.square().sum()) for each in self.exact[1]))


def ours(model: Any, rows: Sequence[StepRow], pass_tokens: int) -> Callable[[], float]:
    """The trainer's own step. How the model's passes go is found out here, as a run does before its first step."""
    flat = [sequence for row in rows for sequence in (row.chosen, row.rejected)]
    logps(model.eval(), [min(flat, key=len), max(flat, key=len)], pass_tokens)
    runner, method = Runner.of(model, flat[0]), Dpo(beta=BETA)
    model.train()

    def run() -> float:
        with shared_prompts(model):
            numbers = packed_step.backward(runner, method, rows, len(rows), pass_tokens, model.parameters())
        return numbers.loss / len(rows)

    return run


def compare(size: Size, rounds: int, grid: Sequence[int], device: torch.device) -> Outcome:
    """Every way once, then the ones that are compared `rounds` - 1 times more, in turn."""
    mine, theirs, online = build(size, device, 3)
    reference = moved(build(size, device, 1)[0])
    drawn = pairs(size)
    cached = logps(reference, [sequence for pair in drawn for sequence in pair], size.batch_tokens)
    rows = [StepRow(*pair, *cached[2 * place : 2 * place + 2]) for place, pair in enumerate(drawn)]
    by_length = sorted(rows, key=lambda row: -max(len(row.chosen), len(row.rejected)))
    with_cached, with_online = trl_step(theirs, BETA), trl_step(online, BETA, reference)

    def way(name: str, model: Any, step: Any, rows: Sequence[StepRow], batch: int) -> Way:
        return Way(f"TRL {trl.__version__}, {name}, micro batch {batch}", model, lambda: step(rows, batch))

    as_it_comes = [way("cached, data order", theirs, with_cached, rows, batch) for batch in AS_IT_COMES]
    tuned = [way("cached, sorted", theirs, with_cached, by_length, batch) for batch in grid]
    ways = [
        Way("ours", mine, ours(mine, rows, size.batch_tokens)),
        *as_it_comes,
        *tuned,
        way("online, data order", online, with_online, rows, AS_IT_COMES[-1]),
    ]
    short = by_length[-2:]
    for once in (ours(mine, short, size.batch_tokens), lambda: with_cached(short, 2), lambda: with_online(short, 2)):
        once()  # first calls start threads and fill caches
    for each in ways:
        each.measure(device)
    best = min(tuned, key=lambda each: each.median)
    for _ in range(rounds - 1):
        for each in ways:
            if each not in tuned or each is best:
                each.measure(device)
    return Outcome(rows, ways, as_it_comes, best, oracle(mine, rows))


@torch.no_grad()
def moved(model: Any) -> Any:
    """The model with noise on every matrix."""
    draw = torch.Generator(model.device).manual_seed(1)
    for weight in model.parameters():
        if weight.ndim > 1:
            noise = torch.randn(weight.shape, generator=draw, device=weight.device, dtype=torch.float32)
            weight.add_((MOVED * float(weight.float().std()) * noise).to(weight.dtype))
    return model


def oracle(model: Any, rows: Sequence[StepRow]) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradient of the step over the same weights in float64 (a GPU's: float32), one sequence at a time."""
    wide = torch.float64 if model.device.type == "cpu" else torch.float32
    exact = AutoModelForCausalLM.from_config(model.config, dtype=wide, attn_implementation="eager").to(model.device)
    exact.load_state_dict(model.state_dict())

    def logp(row: TokenSequence) -> torch.Tensor:
        ids = torch.tensor([row.prompt_ids + row.completion_ids], device=model.device)
        each = torch.log_softmax(exact(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        return each[len(row.prompt_ids) - 1 :].double().sum()

    total = 0.0
    for row in rows:
        margin = logp(row.chosen) - row.ref_chosen_logp - (logp(row.rejected) - row.ref_rejected_logp)
        loss = torch.nn.functional.softplus(-BETA * margin) / len(rows)
        torch.autograd.backward(loss)
        total += float(loss.detach())
    return total, [weight.grad.double().cpu() for weight in exact.parameters()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--pairs", type=int, help=f"of the step; {PAIRS}, or the size's own, by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grid", type=int, nargs="+", default=list(GRID), help="pairs a micro batch, sorted by length")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="the size's own by default")
    chosen = parser.parse_args()
    size = SIZES[chosen.size]
    size = replace(size, pairs=chosen.pairs or min(PAIRS, size.pairs), dtype=chosen.dtype or size.dtype)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report(chosen.size, size, compare(size, chosen.rounds, chosen.grid, device), device)


def report(label: str, size: Size, outcome: Outcome, device: torch.device) -> None:
    mine = outcome.ways[0]
    flat = [sequence for row in outcome.rows for sequence in (row.chosen, row.rejected)]
    tokens, scoring = sum(map(len, flat)), scoring_flops(mine.model, flat)
    assert scoring is not None
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else ""
    peak = peak_flops(device, mine.model.dtype)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    print(f"size {label}: a step of {len(outcome.rows)} pairs, {tokens} tokens, {size.dtype}")
    print(
        f"machine: {gpu or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {versions}"
    )
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"seconds: {'wall' if gpu else 'CPU'}, median of {len(mine.seconds)}, in turn; loss {outcome.exact[0]:.6f}")
    print(
        "\n| way | runs | seconds | ours is faster by | tokens/s | pairs/s | MFU | peak GiB | loss error "
        "| gradient error |"
    )
    print("|---" * 10 + "|")
    for way in outcome.ways:
        flops = 3 * scoring / way.median
        print(
            f"| {way.name}{' (its best)' if way is outcome.best else ''} | {len(way.seconds)} | {way.median:.2f} "
            f"| {way.median / mine.median:.2f}× | {tokens / way.median:.0f} | {len(outcome.rows) / way.median:.2f} "
            f"| {f'{flops / peak:.1%}' if peak else f'{flops / 1e9:.0f} GFLOP/s'} | {way.peak:.2f} "
            f"| {abs(way.loss - outcome.exact[0]):.1e} | {outcome.gradient_error(way):.1e} |"
        )
    print()
    for batch, way in zip(AS_IT_COMES, outcome.as_it_comes, strict=True):
        goal = " (TRL's default; goal 2.0)" if batch == 8 else ""
        print(f"ours against TRL cached as it comes, micro batch {batch}: {way.median / mine.median:.2f}×{goal}")
    print(f"ours against TRL cached, sorted, at its best: {outcome.best.median / mine.median:.2f}× (goal 1.35)")


if __name__ == "__main__":
    main()
