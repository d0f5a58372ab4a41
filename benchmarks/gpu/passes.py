"""Passes through whole models: what a value is, whether it depends on its company, and how fast passes are."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from alignment.data.tokens import TokenSequence
from alignment.models.forward import Head, find_head, head_logps, packed_states, padded_states, row_sums, vocabulary
from alignment.models.packing import Group, batches, forwarded, longest_first, pack, rounded
from alignment.models.size import peak_flops, scoring_flops
from benchmarks.gpu.tools import Record, build, differences, peak_gib, short, timed
from benchmarks.preference_mix import Size, pairs

DATA_ORDER_BATCH = 16
"""Sequences a batch in data order: eight pairs, what a trainer's default asks for."""
COMPARED_PAIRS = 32
BOTH = (torch.bfloat16, torch.float32)

Run = Callable[[], Any]


def sequences(size: Size, most: int) -> list[TokenSequence]:
    return [row for pair in pairs(size)[:most] for row in pair]


def head_of(model: Any, rows: Sequence[TokenSequence]) -> Head:
    with torch.inference_mode():
        head = find_head(model, min(rows, key=len))
    assert head is not None, "no known head gives a Llama's own logits"
    return head


def packed(
    model: Any, head: Head, rows: Sequence[TokenSequence], passes: Iterable[Sequence[Group]], fill: int = 0
) -> list[float]:
    """Every sequence's log-probability, scored in these passes, each filled up to `fill` tokens."""
    found = [0.0] * len(rows)
    for groups in passes:
        together = [[rows[index] for index in group] for group in groups]
        flat = [row for group in together for row in group]
        logps = row_sums(head_logps(head, packed_states(model, together, fill), flat, vocabulary(model)), flat)
        for index, logp in zip((index for group in groups for index in group), logps.tolist(), strict=True):
            found[index] = logp
    return found


def in_batches(model: Any, head: Head, rows: Sequence[TokenSequence], parts: Iterable[Sequence[int]]) -> list[float]:
    found = [0.0] * len(rows)
    for part in parts:
        flat = [rows[index] for index in part]
        logps = row_sums(head_logps(head, padded_states(model, flat), flat, vocabulary(model)), flat)
        for index, logp in zip(part, logps.tolist(), strict=True):
            found[index] = logp
    return found


def sorted_batches(rows: Sequence[TokenSequence], budget: int) -> list[Sequence[int]]:
    lengths = [len(row) for row in rows]
    return list(batches(lengths, longest_first(lengths), budget))


def data_order(rows: Sequence[TokenSequence]) -> list[Sequence[int]]:
    return [range(start, min(start + DATA_ORDER_BATCH, len(rows))) for start in range(0, len(rows), DATA_ORDER_BATCH)]


def values(record: Record, name: str, size: Size, device: torch.device) -> None:
    """Packed and padded passes against every sequence alone in float32, over the same weights."""
    rows = sequences(size, COMPARED_PAIRS)
    alone = [[index] for index in range(len(rows))]
    shared = list(pack(rows, range(len(rows)), size.batch_tokens))
    exact = build(size, torch.float32, device)
    with torch.inference_mode():
        truth = in_batches(exact, head_of(exact, rows), rows, alone)
    for dtype in BOTH:
        model = exact if dtype == torch.float32 else build(size, dtype, device)
        head = head_of(model, rows)
        with torch.inference_mode():
            found = {
                "packed": packed(model, head, rows, shared),
                "padded, sorted": in_batches(model, head, rows, sorted_batches(rows, size.batch_tokens)),
                "padded, data order": in_batches(model, head, rows, data_order(rows)),
                "alone": truth if model is exact else in_batches(model, head, rows, alone),
            }
        of = {"shape": name, "dtype": short(dtype)}
        for way, logps in found.items():
            record.add(**of, way=way, against="alone in float32", **differences(logps, truth))
        for other in ("padded, sorted", "alone"):
            apart = differences(found["packed"], found[other])
            record.add(**of, way="packed", against=f"{other}, same dtype", **apart)


def company(record: Record, name: str, size: Size, device: torch.device) -> None:
    """Whether a sequence's bits depend on the pass it shares, in passes as they come and in passes of one size."""
    rows = sequences(size, COMPARED_PAIRS)
    budget, everyone = size.batch_tokens, range(len(rows))
    drawn = random.Random(1).sample(range(0, len(rows), 2), len(rows) // 2)
    halves = [[place + side for place in part for side in (0, 1)] for part in (drawn[::2], drawn[1::2])]
    together = list(pack(rows, everyone, budget))
    apart = [groups for half in halves for groups in pack(rows, half, budget)]
    for dtype in BOTH:
        model = build(size, dtype, device)
        head = head_of(model, rows)

        def compare(what: str, found: Sequence[float], expected: Sequence[float], dtype: torch.dtype = dtype) -> None:
            record.add(shape=name, dtype=short(dtype), compared=what, **differences(found, expected))

        with torch.inference_mode():
            first = packed(model, head, rows, together)
            compare("packed, the same passes again", packed(model, head, rows, together), first)
            compare("packed, other company", packed(model, head, rows, apart), first)
            halved = list(pack(rows, everyone, budget // 2))
            compare("packed, passes of half the size", packed(model, head, rows, halved), first)
            full = packed(model, head, rows, together, budget)
            compare("packed, filled to one size, other company", packed(model, head, rows, apart, budget), full)
            compare("packed, filled against not filled", full, first)
            alone = in_batches(model, head, rows, [[index] for index in everyone])
            batched = in_batches(model, head, rows, sorted_batches(rows, budget))
            compare("padded, sorted, against alone", batched, alone)
        if dtype == torch.bfloat16:
            with warnings.catch_warnings():  # that numbers are read off tensors which carry a gradient
                warnings.simplefilter("ignore")
                compare("packed with gradients, against without", packed(model, head, rows, together), first)


def speed(record: Record, name: str, size: Size, device: torch.device) -> None:
    """Tokens a second and share of the device's peak of scoring.

    Tokens count a prompt with each of its completions, in all ways alike. Operations are the useful ones (a prompt
    once, no padding).
    """
    dtype, budget = torch.bfloat16, size.batch_tokens
    rows = sequences(size, size.pairs)
    model = build(size, dtype, device)
    head = head_of(model, rows)
    peak = peak_flops(device, dtype)

    def add(way: str, budget: int, positions: int, run: Run) -> None:
        most, seconds = peak_gib(run, device), timed(run, device, rounds=3, at_most=2.0)
        flops = scoring_flops(model, rows) or 0.0
        record.add(
            shape=name,
            dtype=short(dtype),
            way=way,
            pass_tokens=budget,
            seconds=seconds,
            tokens_per_second=sum(map(len, rows)) / seconds,
            positions=positions,
            useful_tflops=flops / seconds / 1e12,
            utilisation=flops / seconds / peak if peak else None,
            peak_gib=most,
        )

    def score_packed(budget: int, fill: int = 0) -> None:
        passes = list(pack(rows, range(len(rows)), budget))
        tokens = [rounded(sum(forwarded(rows, group) for group in groups)) for groups in passes]
        way = "packed, filled to one size" if fill else "packed"
        add(way, budget, sum(max(each, fill) for each in tokens), lambda: packed(model, head, rows, passes, fill))

    def score_padded(way: str, parts: Sequence[Sequence[int]]) -> None:
        add(way, budget, _positions(rows, parts), lambda: in_batches(model, head, rows, parts))

    with torch.inference_mode():
        score_packed(budget)
        score_packed(budget, budget)
        score_padded("padded, sorted", sorted_batches(rows, budget))
        score_padded("padded, data order", data_order(rows))
        for other in (budget // 4, budget // 2, budget * 2):
            score_packed(other)


def _positions(rows: Sequence[TokenSequence], parts: Sequence[Sequence[int]]) -> int:
    """That padded batches compute, padding included."""
    return sum(len(part) * max(len(rows[index]) for index in part) for part in parts)
