"""The device and single kernels: attention over shared prompts, and the head over a large vocabulary."""

from __future__ import annotations

import inspect
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention

from alignment.data.tokens import TokenSequence
from alignment.models import attention as ours
from alignment.models.forward import head_backward, head_logps, token_logps
from alignment.models.packing import Layout, lay_out, pack
from benchmarks.gpu.passes import data_order, sequences, sorted_batches
from benchmarks.gpu.tools import Record, peak_gib, timed
from benchmarks.preference_mix import Size

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def environment(record: Record, device: torch.device) -> None:
    """Device, driver, versions and what torch's variable-length attention takes; then what the device can do."""
    cuda = device.type == "cuda"
    versions: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
        "driver": _told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else None,
        "revision": _told("git", "rev-parse", "--short", "HEAD"),
    }
    record.add(
        device=torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        memory_gib=torch.cuda.get_device_properties(device).total_memory / (1 << 30) if cuda else None,
        threads=torch.get_num_threads(),
        load_average=os.getloadavg()[0],
        float32_products=torch.get_float32_matmul_precision(),
        varlen_attn=_signature(),
        **versions,
    )
    width = 8192 if cuda else 256
    one, other = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = timed(lambda: one @ other, device, rounds=10)
    record.add(measured=f"bfloat16 product of {width}³", tflops=2 * width**3 / seconds / 1e12)
    whole = torch.empty((1 << 30) if cuda else (1 << 20), dtype=torch.uint8, device=device)
    target = torch.empty_like(whole)
    seconds = timed(lambda: target.copy_(whole), device, rounds=10)
    record.add(measured="copy, bytes read and written", terabytes_per_second=2 * whole.numel() / seconds / 1e12)


def _told(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _varlen() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _signature() -> str | None:
    varlen = _varlen()
    return None if varlen is None else str(inspect.signature(varlen))


def attention(record: Record, name: str, size: Size, device: torch.device) -> None:
    """One pass of shared prompts: this project's attention, torch's, and the same sequences padded; with gradients.

    Errors are relative to the largest entry of the same in float32. Operations are those of each way's own work.
    """
    rows = sequences(size, size.pairs)
    groups = next(iter(pack(rows, range(len(rows)), size.batch_tokens)))
    together = [[rows[index] for index in group] for group in groups]
    flat = [row for group in together for row in group]
    layout = lay_out(together, device)
    heads, key_heads = size.config["num_attention_heads"], size.config["num_key_value_heads"]
    width = size.config["hidden_size"] // heads
    states = _states((1, heads, layout.tokens, width), (1, key_heads, layout.tokens, width), device)
    shared = sum((s.stop - s.start) * (s.keys - (s.stop - s.start - 1) / 2) for s in layout.segments)
    wide = [part.detach().float().requires_grad_() for part in states]
    exact = _run(lambda *parts: _segments(parts, layout), wide)

    def add(way: str, call: Callable[..., torch.Tensor], of: Sequence[Three], seen: float, checked: bool) -> None:
        figures: dict[str, Any] = {"shape": name, "way": way, "tokens": layout.tokens}
        try:
            figures |= _measured(call, of, 4.0 * heads * width * seen, device)
            if checked:
                results = _run(call, of[0])
                again = _run(call, of[0])
                figures |= {
                    "error": _apart(results[:1], exact[:1]),
                    "gradient_error": _apart(results[1:], exact[1:]),
                    "same_bits_again": all(map(torch.equal, results, again)),
                }
        except (RuntimeError, ValueError, TypeError) as error:  # a kernel that refuses is a result as well
            figures["refused"] = str(error).splitlines()[0]
        record.add(**figures)

    add("ours", lambda *parts: _attend(parts, layout), [states], shared, True)
    add("ours, segment by segment", lambda *parts: _segments(parts, layout), [states], shared, True)
    if (varlen := _varlen()) is not None and device.type == "cuda":
        index = layout.varlen

        def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, repeats: int, **how: Any) -> torch.Tensor:
            q, k, v = (part[0].transpose(0, 1) for part in (q, k, v))
            k, v = (part[index.where].repeat_interleave(repeats, 1) for part in (k, v))
            borders = index.queries, index.keys, index.longest_query, index.longest_key
            out: torch.Tensor = varlen(q.contiguous(), k, v, *borders, window_size=(-1, 0), **how)
            return out[None]

        repeats = heads // key_heads
        add("varlen, key heads repeated", lambda q, k, v: call(q, k, v, repeats), [states], shared, True)
        takes = inspect.signature(varlen).parameters
        if "enable_gqa" in takes:
            gqa = {"enable_gqa": True}
            add("varlen, enable_gqa", lambda q, k, v: call(q, k, v, 1, **gqa), [states], shared, True)
        if "num_splits" in takes:
            add("varlen, num_splits=1", lambda q, k, v: call(q, k, v, repeats, num_splits=1), [states], shared, True)
    for way, parts in (
        ("SDPA, padded, sorted", sorted_batches(flat, size.batch_tokens)),
        ("SDPA, padded, data order", data_order(flat)),
    ):
        shapes_of = [(len(part), max(len(flat[index]) for index in part)) for part in parts]
        batches = [_states((n, heads, long, width), (n, key_heads, long, width), device) for n, long in shapes_of]
        seen = sum(n * long * (long + 1) / 2 for n, long in shapes_of)
        add(way, _causal, batches, seen, False)
    if varlen is not None and device.type == "cuda":  # last: a kernel that cannot do this may take the device with it
        add("varlen, fewer key heads, no flag", lambda q, k, v: call(q, k, v, 1), [states], shared, True)


GEMMA_2 = (16, 8, 256)
"""Heads, key heads and width of a head of Gemma 2 9B, which caps its attention logits at 50."""
CAP, NEAR = 50.0, 4096


def capped(record: Record, name: str, size: Size, device: torch.device) -> None:
    """One pass of shared prompts with capped logits, in Gemma 2's shape: flex attention, and segment by segment.

    Errors are relative to the largest entry of the same in float32. The first run compiles, which is counted apart.
    """
    cuda = device.type == "cuda"
    heads, key_heads, width = GEMMA_2 if cuda else (4, 2, 16)
    rows = sequences(size, size.pairs)
    groups = next(iter(pack(rows, range(len(rows)), min(size.batch_tokens, 8_192))))
    layout = lay_out([[rows[index] for index in group] for group in groups], device)
    states = _states((1, heads, layout.tokens, width), (1, key_heads, layout.tokens, width), device)
    seen = sum((s.stop - s.start) * (s.keys - (s.stop - s.start - 1) / 2) for s in layout.segments)
    for window in (None, NEAR):

        def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = window) -> torch.Tensor:
            return ours._capped_at_once(q, k, v, None, window, CAP, layout)

        def segments(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = window) -> torch.Tensor:
            return ours._one_by_one(q, k, v, None, window, CAP, layout)

        exact = _run(segments, [part.detach().float().requires_grad_() for part in states])
        for way, call in (("flex, one call", flex), ("segment by segment", segments)):
            figures: dict[str, Any] = {"shape": name, "way": way, "window": window, "tokens": layout.tokens}
            try:
                began = time.perf_counter()
                with torch.no_grad():
                    found = call(*states)
                figures |= {"first_seconds": time.perf_counter() - began, "error": _apart([found], exact[:1])}
                results, again = _run(call, states), _run(call, states)
                figures["gradient_error"] = _apart(results[1:], exact[1:])
                figures["same_bits_again"] = all(map(torch.equal, results, again))
                figures |= _measured(call, [states], 4.0 * heads * width * seen, device)
            except (RuntimeError, ValueError, TypeError) as error:  # no backward pass on a CPU
                figures["refused"] = str(error).splitlines()[0]
            record.add(**figures)


def _states(query: Sequence[int], key: Sequence[int], device: torch.device) -> Three:
    torch.manual_seed(0)
    sizes = (query, key, key)
    q, k, v = (torch.randn(*size, device=device, dtype=torch.bfloat16, requires_grad=True) for size in sizes)
    return q, k, v


def _attend(parts: Sequence[torch.Tensor], layout: Layout) -> torch.Tensor:
    q, k, v = parts
    carried: dict[str, Any] = {ours.NAME: layout}
    return ours.attend(None, q, k, v, None, **carried)[0]


def _segments(parts: Sequence[torch.Tensor], layout: Layout) -> torch.Tensor:
    q, k, v = parts
    return ours._one_by_one(q, k, v, None, None, None, layout)


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def _run(call: Callable[..., torch.Tensor], parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What comes out, and the gradient of query, key and value for a fixed random one of it."""
    out = call(*parts)
    torch.manual_seed(1)
    given = torch.randn(out.shape, device=out.device).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, list(parts), given)]


def _measured(
    call: Callable[..., torch.Tensor], of: Sequence[Three], flops: float, device: torch.device
) -> dict[str, float | None]:
    """Over all of `of`; a backward pass has two and a half times the operations of a forward one."""

    @torch.no_grad()
    def forward() -> None:
        for parts in of:
            call(*parts)

    def both() -> None:
        for parts in of:
            out = call(*parts)
            torch.autograd.grad(out, parts, torch.ones_like(out))

    once, twice = timed(forward, device, at_most=1.0), timed(both, device, at_most=1.0)
    back = max(twice - once, 1e-9)
    return {
        "forward_ms": 1e3 * once,
        "backward_ms": 1e3 * back,
        "forward_tflops": flops / once / 1e12,
        "backward_tflops": 2.5 * flops / back / 1e12,
        "peak_gib": peak_gib(both, device),
    }


def _apart(found: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    return max(float((a.float() - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True))


HEAD_TOKENS = 32_768


def head(record: Record, name: str, size: Size, device: torch.device) -> None:
    """Memory and time of the head over 32,768 positions: in our blocks, all logits at once, fused.

    The peak is what is held above states, weights and the gradients of both.
    """
    tokens = HEAD_TOKENS if device.type == "cuda" else size.batch_tokens
    vocabulary, hidden = size.config["vocab_size"], size.config["hidden_size"]
    torch.manual_seed(0)
    states = torch.randn(tokens, hidden, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(vocabulary, hidden, device=device, dtype=torch.bfloat16) * 0.02).requires_grad_()
    states.grad = kept = torch.zeros_like(states)
    weight.grad = torch.zeros_like(weight)
    ids = torch.randint(vocabulary, (tokens,), device=device)
    row, each = TokenSequence((0,), tuple(ids.tolist())), torch.ones(tokens, dtype=torch.float64)

    def linear(some: torch.Tensor) -> torch.Tensor:
        return some @ weight.T

    def backward(logps: torch.Tensor) -> None:
        torch.autograd.backward(logps.sum())

    @torch.no_grad()
    def at_once() -> None:
        token_logps(linear(states), ids)

    ways: dict[str, Callable[[], Any]] = {
        "ours, as scored": lambda: head_logps(linear, states, [row], vocabulary),
        "ours, with backward": lambda: kept.copy_(head_backward(linear, states, [row], vocabulary, each)),
        "all logits at once": at_once,
        "all logits at once, with backward": lambda: backward(token_logps(linear(states), ids)),
    }
    fused = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if fused is not None:
        ways["torch's linear_cross_entropy, with backward"] = lambda: backward(
            fused(states, weight, ids, reduction="none").double()
        )
    for way, run in ways.items():
        figures: dict[str, Any] = {"shape": name, "tokens": tokens, "vocabulary": vocabulary, "way": way}
        try:
            figures |= {"peak_gib": peak_gib(run, device), "seconds": timed(run, device, at_most=1.0)}
        except (RuntimeError, ValueError, TypeError) as error:  # out of memory is one
            figures["refused"] = str(error).splitlines()[0]
        record.add(**figures)
