"""The packed step: whether it sees the scorer's values, what its gradient is, and how fast it is beside padded ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from alignment.data.tokens import TokenSequence
from alignment.logprobs.scorer import logps
from alignment.methods import PairLogps
from alignment.methods.dpo import Dpo
from alignment.models.runner import Runner
from alignment.models.size import peak_flops, scoring_flops
from alignment.training import packed_step
from benchmarks.gpu.passes import BOTH, COMPARED_PAIRS
from benchmarks.gpu.tools import Record, build, differences, peak_gib, short, timed
from benchmarks.preference_mix import Size, StepRow, pairs

DATA_ORDER_PAIRS = 4
"""Pairs a micro batch of a padded step in the order of its rows."""


@dataclass(frozen=True, kw_only=True)
class Recorder(Dpo):
    """DPO that keeps the policy's log-probs, chosen and rejected, row by row as they went through."""

    name = "recorder"
    seen: list[list[float]] = field(default_factory=list)

    def objective(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        self.seen.extend(torch.stack([rows.policy_chosen, rows.policy_rejected], 1).tolist())
        return super().objective(rows, constants)


class HalfFull(Runner):
    """The usual passes' size with half as many rows in each: another packing of the same rows."""

    def passes_of_rows(self, rows: Sequence[Sequence[TokenSequence]], budget: int) -> list[list[int]]:
        return super().passes_of_rows(rows, budget // 2)


class Padded(Runner):
    """Passes that share nothing: sorted by length as for models that cannot share, or as rows come."""

    def __init__(self, model: Any, sequence: TokenSequence, *, as_they_come: bool) -> None:
        super().__init__(model, sequence)
        self.shared, self.as_they_come = False, as_they_come

    def fill(self, tokens: int) -> int:
        return 0

    def passes_of_rows(self, rows: Sequence[Sequence[TokenSequence]], budget: int) -> list[list[int]]:
        if not self.as_they_come:
            return super().passes_of_rows(rows, budget)
        starts = range(0, len(rows), DATA_ORDER_PAIRS)
        return [list(range(start, min(start + DATA_ORDER_PAIRS, len(rows)))) for start in starts]


def step_rows(model: Any, size: Size, most: int, budget: int) -> list[StepRow]:
    """Pairs with the scorer's own log-probs as the reference's."""
    drawn = pairs(size)[:most]
    scored = logps(model, [sequence for pair in drawn for sequence in pair], budget)
    return [StepRow(*pair, *scored[2 * place : 2 * place + 2]) for place, pair in enumerate(drawn)]


def _sides(rows: Sequence[StepRow]) -> list[list[TokenSequence]]:
    return [[row.chosen, row.rejected] for row in rows]


def agreement(record: Record, name: str, size: Size, device: torch.device) -> None:
    """The step's first log-probs against the scorer's and against padded ones; two packings of one step; gradients.

    Passes are half the usual size, so that a float32 backward pass fits as well.
    """
    for dtype in BOTH:
        of = {"shape": name, "dtype": short(dtype)}
        _agreement_of(record, of, build(size, dtype, device), size, size.batch_tokens // 2)


def _agreement_of(record: Record, of: dict[str, Any], model: Any, size: Size, budget: int) -> None:
    rows = step_rows(model, size, COMPARED_PAIRS, budget)
    flat = [sequence for sides in _sides(rows) for sequence in sides]
    usual, half = Runner.of(model, flat[0]), HalfFull(model, flat[0])
    half.shared = usual.shared

    def take(runner: Runner) -> tuple[list[float], list[torch.Tensor]]:
        """Log-probs in the order of `flat`, and the gradient."""
        model.zero_grad(set_to_none=True)
        method = Recorder()
        packed_step.backward(runner, method, rows, len(rows), budget, model.parameters())
        places = [place for part in runner.passes_of_rows(_sides(rows), runner.budget(budget)) for place in part]
        seen = method.seen[-len(places) :]  # memory may have run out at first
        by_place = dict(zip(places, seen, strict=True))
        return [logp for place in range(len(rows)) for logp in by_place[place]], _gradient(model)

    def compare(what: str, found: Sequence[float], expected: Sequence[float]) -> None:
        record.add(**of, compared=what, **differences(found, expected))

    scored = [logp for row in rows for logp in (row.ref_chosen_logp, row.ref_rejected_logp)]
    first, gradient = take(usual)
    compare("step's first forward, against the scorer", first, scored)
    others = {
        "step in the same packing again": usual,
        "step in another packing of the same size": half,
        "padded, sorted": Padded(model, flat[0], as_they_come=False),
    }
    apart = {}
    for what, runner in others.items():
        found, its_gradient = take(runner)
        compare(f"{what}, against the step" if what == "padded, sorted" else what, found, first)
        apart[what] = _apart(its_gradient, gradient)
        del its_gradient
    with torch.inference_mode():
        compare("alone and padded, against the scorer", [usual.alone(sequence) for sequence in flat], scored)
    for what, relative in apart.items():
        record.add(**of, compared=f"gradient: {what}, against the step", relative=relative)


def _gradient(model: Any) -> list[torch.Tensor]:
    """The gradients, taken from the model."""
    found = [weight.grad for weight in model.parameters()]
    model.zero_grad(set_to_none=True)
    return found


def _apart(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """‖g − g′‖ / ‖g′‖."""
    apart = sum(float((a.float() - b.float()).square().sum()) for a, b in zip(found, expected, strict=True))
    return math.sqrt(apart / sum(float(each.float().square().sum()) for each in expected))


def step(record: Record, name: str, size: Size, device: torch.device) -> None:
    """Forward and backward of one optimiser step, packed against padded; no optimiser, all activations kept.

    Tokens count a prompt with each of its completions, in all ways alike. Operations are the useful ones (a prompt
    once, no padding), three times those of scoring. The peak is what is held above the weights.
    """
    dtype, budget = torch.bfloat16, size.batch_tokens
    model = build(size, dtype, device)
    rows = step_rows(model, size, max(COMPARED_PAIRS, size.pairs // 4), budget)
    flat = [sequence for sides in _sides(rows) for sequence in sides]
    flops, peak, method = 3 * (scoring_flops(model, flat) or 0.0), peak_flops(device, dtype), Dpo()
    ways = {
        "packed": Runner.of(model, flat[0]),
        "padded, sorted": Padded(model, flat[0], as_they_come=False),
        f"padded, as rows come, {DATA_ORDER_PAIRS} pairs": Padded(model, flat[0], as_they_come=True),
    }
    for way, runner in ways.items():

        def run(runner: Runner = runner) -> packed_step.StepNumbers:
            model.zero_grad(set_to_none=True)
            return packed_step.backward(runner, method, rows, len(rows), budget, model.parameters())

        numbers = run()
        model.zero_grad(set_to_none=True)
        most, seconds = peak_gib(run, device), timed(run, device, rounds=3, at_most=3.0)
        record.add(
            shape=name,
            dtype=short(dtype),
            way=way,
            pairs=len(rows),
            seconds=seconds,
            tokens_per_second=numbers.tokens / seconds,
            pairs_per_second=len(rows) / seconds,
            positions=int(numbers.positions),
            useful_tflops=flops / seconds / 1e12,
            utilisation=flops / seconds / peak if peak else None,
            peak_gib=most,
            loss=numbers.loss / len(rows),
        )
