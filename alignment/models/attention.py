"""Attention over a pass in which completions share their prompt, as one of Transformers' attention functions.

Every segment of the pass is attended by itself, its prompt's keys and values gathered in front of its
own: shapes depend on the sequence alone, and so do the bits, and no mask spans the pass. On a GPU in half
precision one call does the same for all segments: of variable-length flash attention, or, where logits are capped, of
flex attention (`alignment.models.capped`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from alignment.models.capped import capped_at_once, family
from alignment.models.packing import Layout, VarlenIndex

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

NAME = "shared_prompt"
"""Also the name of the keyword that carries the layout through the model."""
NOT_HANDLED = ("position_bias", "s_aux")


class CannotShare(Exception):
    """A kind of attention that has no form here."""


@contextmanager
def shared_prompts(model: PreTrainedModel) -> Iterator[None]:
    """For the while, the model attends through `attend`. No mask function goes with it: no mask is made.

    A trainer holds this open over all its steps, backward included: activation checkpointing runs layers again there.
    """
    from transformers import AttentionInterface

    before = model.config._attn_implementation
    if before == NAME:
        yield
        return
    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Query [1, heads, tokens, width], key and value [1, key heads, tokens, width] → [1, tokens, heads, width].

    With `sliding_window` w a token sees itself and the w - 1 before it, counted as if its prompt stood right in
    front. Raises `CannotShare` for attention that is more than that, and where the layout has not come through.
    """
    layout, window, cap = kwargs.get(NAME), kwargs.get("sliding_window"), kwargs.get("softcap")
    refused = [name for name in NOT_HANDLED if kwargs.get(name) is not None]
    if refused or not isinstance(layout, Layout) or attention_mask is not None or query.shape[2] != layout.tokens:
        raise CannotShare(f"{type(module).__name__} with {', '.join(refused) or 'tokens or a mask of its own'}")
    if query.is_cuda:
        half = query.element_size() == 2
        if half and cap is not None and family() == "flex":
            return _capped_at_once(query, key, value, scaling, window, cap, layout), None
        varlen = _varlen() if half and cap is None else None
        if varlen is not None:
            return _all_at_once(varlen, query, key, value, scaling, window, layout), None
        _say_that_segments_go_one_by_one(query.dtype, cap is not None)
    return _one_by_one(query, key, value, scaling, window, cap, layout), None


def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    cap: float | None,
    layout: Layout,
) -> torch.Tensor:
    """Segment by segment. States are split once and joined once: a slice a segment would cost the backward pass a
    gradient of the whole pass's size for each."""
    import torch

    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    queries, keys, values = (torch.split(states, layout.sizes, 2) for states in (query, key, value))
    out = []
    for place, prompt in enumerate(layout.prompts):
        seen_keys, seen_values = keys[place], values[place]
        if prompt is not None:
            seen_keys = torch.cat([keys[prompt], seen_keys], 2)
            seen_values = torch.cat([values[prompt], seen_values], 2)
        mask = layout.mask(place, window)
        if cap is None:
            attended = torch.nn.functional.scaled_dot_product_attention(
                queries[place], seen_keys, seen_values, attn_mask=mask, is_causal=mask is None, scale=scaling
            )
        else:
            attended = _capped(queries[place], seen_keys, seen_values, mask, scaling, cap)
        out.append(attended)
    return torch.cat(out, 2).transpose(1, 2)


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    cap: float,
) -> torch.Tensor:
    """Attention whose logits are capped: cap · tanh(logits / cap), as Gemma 2 has it; softmax in float32 as there."""
    import torch

    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = cap * torch.tanh(query @ key.transpose(2, 3) * scale / cap)
    if mask is None:
        mask = torch.ones(logits.shape[2:], dtype=torch.bool, device=logits.device).tril()
    logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(query.dtype) @ value


@cache
def _varlen() -> Callable[..., Any] | None:
    """torch's variable-length flash attention as `_all_at_once` calls it; None where torch has none that fits."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return with_fewer_key_heads(varlen_attn)


def with_fewer_key_heads(varlen: Callable[..., Any]) -> Callable[..., Any] | None:
    """`varlen` for keys and values of fewer heads than the query's; None for one without scale and window.

    Its signature grew with torch: 2.11 wants as many key heads as query heads, 2.12 has `enable_gqa` and `num_splits`.
    One split adds a query's keys up in one order, whatever else is in the pass.
    """
    takes = inspect.signature(varlen).parameters
    if not {"window_size", "scale"} <= takes.keys():
        return None
    if "num_splits" in takes:
        varlen = partial(varlen, num_splits=1)
    if "enable_gqa" in takes:
        return partial(varlen, enable_gqa=True)

    def expanded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *borders: Any, **how: Any) -> Any:
        repeats = query.shape[1] // key.shape[1]
        return varlen(query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), *borders, **how)

    return expanded


@cache
def _say_that_segments_go_one_by_one(dtype: torch.dtype, capped: bool) -> None:
    """Once a precision: many small kernels in place of one leave a GPU waiting."""
    import torch

    why = "flash attention takes 16 bits only" if dtype.itemsize > 2 else f"torch {torch.__version__} has no fit for it"
    why = "flex attention, which caps logits, is not compiled for this GPU" if capped and dtype.itemsize == 2 else why
    logger.warning("attention over shared prompts in %s goes segment by segment, which is slow: %s", dtype, why)


def _all_at_once(
    varlen: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    layout: Layout,
) -> torch.Tensor:
    """The same by one call; its causal mask ends at the last query and the last key, as segments need."""
    index, gather = layout.varlen, _gather()
    out: torch.Tensor = varlen(
        query[0].transpose(0, 1).contiguous(),
        gather(key[0].transpose(0, 1), index),
        gather(value[0].transpose(0, 1), index),
        index.queries,
        index.keys,
        index.longest_query,
        index.longest_key,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
    )
    return out[None]


def _capped_at_once(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    cap: float,
    layout: Layout,
) -> torch.Tensor:
    index, gather = layout.varlen, _gather()
    keys, values = (gather(states[0].transpose(0, 1), index).transpose(0, 1)[None] for states in (key, value))
    return capped_at_once(query, keys, values, scaling, window, cap, layout)


@cache
def _gather() -> Callable[[torch.Tensor, VarlenIndex], torch.Tensor]:
    """States [tokens, heads, width] to where attention wants them, [keys, heads, width].

    The gradients of a token's copies, its own and one for each completion behind its prompt, are added one after the
    other in float32: always in the same order, which a sum by atomic additions on a GPU is not.
    """
    import torch

    class Gathered(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, states: torch.Tensor, index: VarlenIndex) -> torch.Tensor:
            ctx.copies = index.copies
            return states.index_select(0, index.where)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
            wide = torch.promote_types(gradient.dtype, torch.float32)
            (_, places), *more = ctx.copies  # the first copies are of every token, in order
            total = gradient.index_select(0, places).to(wide)
            for tokens, places in more:
                total[tokens] = total[tokens] + gradient.index_select(0, places)
            return total.to(gradient.dtype), None

    gathered: Callable[[torch.Tensor, VarlenIndex], torch.Tensor] = Gathered.apply
    return gathered
