"""Passes through whole models: what a value is, whether it depends on its company, and how fast passes are."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from alignment.data.tokens import TokenSequence
from alignment.models.attention import NAME, shared_prompts
from alignment.models.forward import (
    LOGITS_AT_ONCE,
    Head,
    decoder_of,
    find_head,
    packed_logps,
    padded,
    padded_logps,
    token_logps,
    vocabulary,
)
from alignment.models.packing import ROUND, Group, batches, forwarded, lay_out, longest_first, pack, rounded
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


def packed(model: Any, head: Head, rows: Sequence[TokenSequence], passes: Iterable[Sequence[Group]]) -> list[float]:
    """Every sequence's log-probability, scored in these passes; groups of indices past the rows are filling."""
    found = [0.0] * len(rows)
    for groups in passes:
        logps = packed_logps(model, [[rows[index] for index in group] for group in groups], head)
        for index, logp in zip((index for group in groups for index in group), logps, strict=True):
            found[index] = logp
    return found


def in_batches(model: Any, head: Head, rows: Sequence[TokenSequence], parts: Iterable[Sequence[int]]) -> list[float]:
    found = [0.0] * len(rows)
    for part in parts:
        for index, logp in zip(part, padded_logps(model, [rows[index] for index in part], head), strict=True):
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
    plain = sequences(size, COMPARED_PAIRS)
    budget, everyone = size.batch_tokens, range(len(plain))
    drawn = random.Random(1).sample(range(0, len(plain), 2), len(plain) // 2)
    halves = [[place + side for place in part for side in (0, 1)] for part in (drawn[::2], drawn[1::2])]
    block = min(max(ROUND, LOGITS_AT_ONCE // size.config["vocab_size"] // ROUND * ROUND), budget // 4)
    rows = list(plain)  # what fills passes is appended
    together = list(pack(plain, everyone, budget))
    apart = [groups for half in halves for groups in pack(plain, half, budget)]
    filled_together = [filled(rows, groups, budget, block) for groups in pack(plain, everyone, budget - 2 * block)]
    filled_apart = [
        filled(rows, groups, budget, block) for half in halves for groups in pack(plain, half, budget - 2 * block)
    ]
    for dtype in BOTH:
        model = build(size, dtype, device)
        head = head_of(model, plain)

        def compare(what: str, found: Sequence[float], expected: Sequence[float], dtype: torch.dtype = dtype) -> None:
            ours = differences(found[: len(plain)], expected[: len(plain)])
            record.add(shape=name, dtype=short(dtype), compared=what, **ours)

        with torch.inference_mode():
            first = packed(model, head, rows, together)
            compare("packed, the same passes again", packed(model, head, rows, together), first)
            compare("packed, other company", packed(model, head, rows, apart), first)
            halved = list(pack(plain, everyone, budget // 2))
            compare("packed, passes of half the size", packed(model, head, rows, halved), first)
            full = packed(model, head, rows, filled_together)
            compare("packed, filled to one size, other company", packed(model, head, rows, filled_apart), full)
            compare("packed, filled against not filled", full, first)
            alone = in_batches(model, head, plain, [[index] for index in everyone])
            batched = in_batches(model, head, plain, sorted_batches(plain, budget))
            compare("padded, sorted, against alone", batched, alone)
        if dtype == torch.bfloat16:
            with warnings.catch_warnings():  # that numbers are read off tensors which carry a gradient
                warnings.simplefilter("ignore")
                compare("packed with gradients, against without", packed(model, head, rows, together), first)


def filled(rows: list[TokenSequence], groups: Sequence[Group], budget: int, block: int) -> list[Group]:
    """A pass of exactly `budget` tokens whose head sees a multiple of `block` positions.

    One more group does both: its completion fills the head's last block, its prompt the rest. It is appended to `rows`.
    """
    tokens = sum(forwarded(rows, group) for group in groups)
    read = sum(len(rows[index].completion_ids) for group in groups for index in group)
    completion = -read % block or block
    prompt = max(1, budget - tokens - (completion - 1))
    rows.append(TokenSequence((1,) * prompt, (1,) * completion))
    return [*groups, [len(rows) - 1]]


def speed(record: Record, name: str, size: Size, device: torch.device) -> None:
    """Tokens a second and share of the device's peak: scoring, then forward and backward.

    Tokens count a prompt with each of its completions, in all ways alike. Operations are the useful ones (a prompt
    once, no padding), three times as many with a backward pass.
    """
    dtype, budget = torch.bfloat16, size.batch_tokens
    rows = sequences(size, size.pairs)
    few = rows[: len(rows) // 4]
    model = build(size, dtype, device)
    head = head_of(model, rows)
    peak = peak_flops(device, dtype)

    def add(work: str, way: str, part: Sequence[TokenSequence], budget: int, positions: int, run: Run) -> None:
        most, seconds = peak_gib(run, device), timed(run, device, rounds=3, at_most=2.0)
        flops = (scoring_flops(model, part) or 0.0) * (1 if work == "score" else 3)
        record.add(
            shape=name,
            dtype=short(dtype),
            work=work,
            way=way,
            pass_tokens=budget,
            seconds=seconds,
            tokens_per_second=sum(map(len, part)) / seconds,
            positions=positions,
            useful_tflops=flops / seconds / 1e12,
            utilisation=flops / seconds / peak if peak else None,
            peak_gib=most,
        )

    def score_packed(budget: int) -> None:
        passes = list(pack(rows, range(len(rows)), budget))
        positions = sum(rounded(sum(forwarded(rows, group) for group in groups)) for groups in passes)
        add("score", "packed", rows, budget, positions, lambda: packed(model, head, rows, passes))

    def score_padded(way: str, parts: Sequence[Sequence[int]]) -> None:
        add("score", way, rows, budget, _positions(rows, parts), lambda: in_batches(model, head, rows, parts))

    with torch.inference_mode():
        score_packed(budget)
        score_padded("padded, sorted", sorted_batches(rows, budget))
        score_padded("padded, data order", data_order(rows))
    passes = list(pack(few, range(len(few)), budget))
    positions = sum(rounded(sum(forwarded(few, group) for group in groups)) for groups in passes)
    add("train", "packed", few, budget, positions, lambda: backward(model, head, few, passes, True))
    parts = sorted_batches(few, budget)
    singles = [[[index] for index in part] for part in parts]
    positions = _positions(few, parts)
    add("train", "padded, sorted", few, budget, positions, lambda: backward(model, head, few, singles, False))
    model.zero_grad(set_to_none=True)
    with torch.inference_mode():
        for other in (budget // 4, budget // 2, budget * 2):
            score_packed(other)


def _positions(rows: Sequence[TokenSequence], parts: Sequence[Sequence[int]]) -> int:
    """That padded batches compute, padding included."""
    return sum(len(part) * max(len(rows[index]) for index in part) for part in parts)


def backward(
    model: Any, head: Head, rows: Sequence[TokenSequence], passes: Iterable[Sequence[Group]], share: bool
) -> None:
    """Forward and backward over all passes; gradients add up. Every layer keeps its activations, the head none."""
    model.zero_grad(set_to_none=True)
    decoder = decoder_of(model)
    for groups in passes:
        together = [[rows[index] for index in group] for group in groups]
        flat = [row for group in together for row in group]
        if share:
            layout = lay_out(together, model.device)
            with shared_prompts(model):
                ids, positions = layout.ids, layout.positions
                out = decoder(input_ids=ids, position_ids=positions, use_cache=False, **{NAME: layout})
            states = out.last_hidden_state[0][layout.reads.to(model.device)]
        else:
            hidden = decoder(input_ids=padded(flat, model.device), use_cache=False).last_hidden_state
            states = torch.cat(
                [hidden[place, len(row.prompt_ids) - 1 : len(row) - 1] for place, row in enumerate(flat)]
            )
        ids = torch.tensor([token for row in flat for token in row.completion_ids], device=model.device)
        torch.autograd.backward(-recomputed_logps(head, states, ids, vocabulary(model)) / len(ids))


def recomputed_logps(head: Head, states: torch.Tensor, ids: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Sum of the log-probabilities of `ids` [positions], block by block; backward makes a block's logits again."""
    block = max(ROUND, LOGITS_AT_ONCE // vocabulary // ROUND * ROUND)
    total = torch.zeros((), dtype=torch.float64, device=states.device)
    for part, wanted in zip(torch.split(states, block), torch.split(ids, block), strict=True):
        total = total + checkpoint(
            lambda some, of: token_logps(head(some), of).sum(), part, wanted, use_reentrant=False
        )
    return total
