"""Attention over a pass in which completions share their prompt, as one of Transformers' attention functions.

Every segment of the pass is attended by itself, its prompt's keys and values gathered in front of its
own: shapes depend on the sequence alone, and so do the bits, and no mask spans the pass. On a GPU in half
precision one variable-length flash attention call does the same for all segments.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from alignment.models.packing import Layout, Segment

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

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
    if query.is_cuda:
        varlen = _varlen() if query.element_size() == 2 else None
        if varlen is not None:
            return _all_at_once(varlen, query, key, value, scaling, window, layout), None
        _say_that_segments_go_one_by_one(query.dtype)
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
    """torch's variable-length flash attention as `_all_at_once` calls it; None where torch has none that fits."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return with_fewer_key_heads(varlen_attn)


def with_fewer_key_heads(varlen: Callable[..., Any]) -> Callable[..., Any] | None:
    """`varlen` for keys and values of fewer heads than the query's; None for one without scale and window.

    Its signature grew with torch: 2.11 wants as many key heads as query heads, 2.12 has `enable_gqa`.
    """
    takes = inspect.signature(varlen).parameters
    if not {"window_size", "scale"} <= takes.keys():
        return None
    if "enable_gqa" in takes:
        return partial(varlen, enable_gqa=True)

    def expanded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *borders: Any, **how: Any) -> Any:
        repeats = query.shape[1] // key.shape[1]
        return varlen(query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), *borders, **how)

    return expanded


@cache
def _say_that_segments_go_one_by_one(dtype: torch.dtype) -> None:
    """Once a precision: many small kernels in place of one leave a GPU waiting."""
    import torch

    why = "flash attention takes 16 bits only" if dtype.itemsize > 2 else f"torch {torch.__version__} has no fit for it"
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
    )
    return out[None]
