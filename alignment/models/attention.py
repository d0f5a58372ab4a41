"""Attention over a pass in which completions share their prompt, as one of Transformers' attention functions.

Every segment of the pass is attended by itself, its prompt's keys and values gathered in front of its
own: shapes depend on the sequence alone, and so do the bits, and no mask spans the pass. On a GPU in half
precision one variable-length flash attention call does the same for all segments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from alignment.models.packing import Layout, Segment

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "shared_prompt"
"""Also the name of the keyword that carries the layout through the model."""
NOT_HANDLED = ("softcap", "position_bias", "s_aux")


class CannotShare(Exception):
    """A kind of attention that has no form here."""


@contextmanager
def shared_prompts(model: PreTrainedModel) -> Iterator[None]:
    """For the while, the model attends through `attend`. No mask function goes with it: no mask is made."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    before = model.config._attn_implementation
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
    layout, window = kwargs.get(NAME), kwargs.get("sliding_window")
    refused = [name for name in NOT_HANDLED if kwargs.get(name) is not None]
    if refused or not isinstance(layout, Layout) or attention_mask is not None or query.shape[2] != layout.tokens:
        raise CannotShare(f"{type(module).__name__} with {', '.join(refused) or 'tokens or a mask of its own'}")
    if query.is_cuda and query.element_size() == 2 and (varlen := _varlen()) is not None:
        return _all_at_once(varlen, query, key, value, scaling, window, layout), None
    out = query.new_empty(1, layout.tokens, query.shape[1], value.shape[3])
    for segment in layout.segments:
        out[:, segment.start : segment.stop] = _one(query, key, value, scaling, window, segment).transpose(1, 2)
    return out, None


def _one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    segment: Segment,
) -> torch.Tensor:
    """One segment's attention [1, heads, tokens of the segment, width]."""
    import torch

    own = slice(segment.start, segment.stop)
    shared = slice(segment.prompt_start, segment.prompt_stop)
    repeats = query.shape[1] // key.shape[1]
    keys, values = (
        torch.cat([states[:, :, shared], states[:, :, own]], 2).repeat_interleave(repeats, 1) for states in (key, value)
    )
    mask = None
    before = segment.prompt_stop - segment.prompt_start
    reach = segment.keys if window is None else window
    if before or reach < segment.keys:
        mask = torch.ones(segment.stop - segment.start, segment.keys, dtype=torch.bool, device=query.device)
        mask = mask.tril(before).triu(before - reach + 1)
    return torch.nn.functional.scaled_dot_product_attention(
        query[:, :, own], keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling
    )


@cache
def _varlen() -> Callable[..., Any] | None:
    """torch's variable-length flash attention, where it is and takes what is asked of it here."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    takes = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"window_size", "scale", "enable_gqa"} <= takes.keys() else None


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
    index = layout.varlen
    out: torch.Tensor = varlen(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1)[index.where],
        value[0].transpose(0, 1)[index.where],
        index.queries,
        index.keys,
        index.longest_query,
        index.longest_key,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=True,
    )
    return out[None]
