"""Attention with capped logits over a whole pass on a GPU: torch's flex attention, as flash attention caps none.

Gemma 2 caps: cap · tanh(logits / cap) before the softmax. Segments are laid into blocks of 128 queries and 128 keys,
and each begins a block: what it is computed with depends on the segment alone, and so do its bits. The blocks that a
segment's queries may look at are named one by one, so nothing spans the pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from alignment.errors import BadInput
from alignment.models.packing import Layout

if TYPE_CHECKING:
    import torch

BLOCK = 128
"""Queries, and keys, of one block: flex attention's own size."""


def caps(config: dict[str, Any]) -> bool:
    """Whether the model of a configuration (`config.json`) caps its attention logits."""
    return bool({**config, **(config.get("text_config") or {})}.get("attn_logit_softcapping"))


@cache
def family() -> str:
    """What attends where logits are capped, on a GPU in 16 bits: `flex`, or `segments`, one by one, where torch has no
    compiler for this GPU. Flex attention that is not compiled holds the scores of the whole pass."""
    import torch

    try:
        from torch.nn.attention.flex_attention import BlockMask, flex_attention  # noqa: F401
        from torch.utils._triton import has_triton
    except ImportError:
        return "segments"
    return "flex" if has_triton() and torch.cuda.get_device_capability() >= (8, 0) else "segments"


class Blocks(NamedTuple):
    """Where a pass's queries and gathered keys stand in blocks; lengths are multiples of `BLOCK`.

    `queries` [tokens] and `keys` [gathered keys] are the places of each. `mask` says what a place sees.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    longest: tuple[int, int]
    mask: Any


def blocks(layout: Layout, window: int | None) -> Blocks:
    """Made once for all layers of a pass that have the same window."""
    name = ("blocks", window)
    if name not in layout.remembered:
        layout.remembered[name] = _blocks(layout, window)
    made: Blocks = layout.remembered[name]
    return made


def _blocks(layout: Layout, window: int | None) -> Blocks:
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    device = layout.ids.device
    queries, keys = list[torch.Tensor](), list[torch.Tensor]()  # places
    query_at, key_at, whose = list[torch.Tensor](), list[torch.Tensor](), (list[torch.Tensor](), list[torch.Tensor]())
    looked_at = list[range]()  # blocks of keys, for each block of queries
    first_query = first_key = 0
    for place, segment in enumerate(layout.segments):
        own, seen = segment.stop - segment.start, segment.keys
        before, rows, columns = seen - own, -(-own // BLOCK), -(-seen // BLOCK)
        queries.append(first_query + torch.arange(own))
        keys.append(first_key + torch.arange(seen))
        # what fills a block of queries up looks at what the last one does, and what fills keys up is seen by none
        query_at.append(torch.arange(before, before + rows * BLOCK).clamp(max=seen - 1))
        key_at.append(torch.arange(columns * BLOCK))
        for side, count in zip(whose, (rows, columns), strict=True):
            side.append(torch.full((count * BLOCK,), place))
        for row in range(rows):
            last = min(before + (row + 1) * BLOCK, seen) - 1
            first = 0 if window is None else max(0, min(before + row * BLOCK, seen - 1) - window + 1)
            looked_at.append(range(first_key // BLOCK + first // BLOCK, first_key // BLOCK + last // BLOCK + 1))
        first_query, first_key = first_query + rows * BLOCK, first_key + columns * BLOCK
    indices = torch.zeros(len(looked_at), first_key // BLOCK, dtype=torch.int32)
    for row, found in enumerate(looked_at):
        indices[row, : len(found)] = torch.tensor(found, dtype=torch.int32)
    counts = torch.tensor([len(found) for found in looked_at], dtype=torch.int32)
    of_query, of_key = (torch.cat(side).to(device) for side in whose)
    at_query, at_key = torch.cat(query_at).to(device), torch.cat(key_at).to(device)
    reach = first_key if window is None else window

    def sees(_batch: Any, _head: Any, query: Any, key: Any) -> Any:
        behind = at_query[query] - at_key[key]
        return (of_query[query] == of_key[key]) & (behind >= 0) & (behind < reach)

    mask = BlockMask.from_kv_blocks(
        counts[None, None].to(device),
        indices[None, None].to(device),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(first_query, first_key),
    )
    return Blocks(torch.cat(queries).to(device), torch.cat(keys).to(device), (first_query, first_key), mask)


def capped_at_once(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    cap: float,
    layout: Layout,
) -> torch.Tensor:
    """Query [1, heads, tokens, width], and keys and values as they are gathered, [1, key heads, keys, width], to
    [1, tokens, heads, width].

    Raises `BadInput` where the GPU's compiler fails: what would go otherwise has other bits, and another name.
    """
    import torch

    found = blocks(layout, window)

    def put(states: torch.Tensor, places: torch.Tensor, length: int) -> torch.Tensor:
        """Each state to its place of `length`; its gradient comes back by a plain read."""
        spread = states.new_zeros(*states.shape[:2], length, states.shape[3])
        return spread.index_copy(2, places, states)

    how = {"score_mod": _cap(cap), "block_mask": found.mask, "scale": scaling, "enable_gqa": True}
    states = [put(query, found.queries, found.longest[0])]
    states += [put(each, found.keys, found.longest[1]) for each in (key, value)]
    try:
        attended = _flex(query.is_cuda)(*states, **how)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        from alignment.models.checkpoint import first_line

        if not query.is_cuda:
            raise
        raise BadInput(
            f"flex attention, which caps this model's attention logits, fails on this GPU ({first_line(error)});"
            " precision: float32 goes without it, segment by segment",
            field="precision",
        ) from error
    return attended.index_select(2, found.queries).transpose(1, 2)  # distinct places: their gradients meet nowhere


@cache
def _cap(cap: float) -> Callable[..., Any]:
    """The same function in every layer, so that it is compiled once."""

    def capped(score: Any, _batch: Any, _head: Any, _query: Any, _key: Any) -> Any:
        return cap * (score / cap).tanh()

    return capped


@cache
def _flex(compiled: bool) -> Callable[..., Any]:
    """Compiled once for passes of all lengths; on a CPU as it is, for tests."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention
