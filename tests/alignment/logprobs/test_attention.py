from __future__ import annotations

from typing import Any

import pytest
import torch

from alignment.data.tokens import TokenSequence
from alignment.models import attention
from alignment.models.packing import lay_out


def varlen(query: Any, key: Any, value: Any, queries: Any, keys: Any, longest_query: int, longest_key: int, **how: Any):  # type: ignore[no-untyped-def]
    """What torch documents of `varlen_attn`, in plain SDPA: the causal mask ends at the last query and key."""
    before, after = how["window_size"]
    assert after == 0
    out = torch.full((query.shape[0], query.shape[1], value.shape[2]), float("nan"))
    for q, q_end, k, k_end in zip(queries[:-1], queries[1:], keys[:-1], keys[1:], strict=True):
        assert (q_end - q <= longest_query) and (k_end - k <= longest_key)
        ahead = (k_end - k) - (q_end - q)
        mask = torch.ones(q_end - q, k_end - k, dtype=torch.bool).tril(ahead)
        if before >= 0:
            mask = mask.triu(ahead - before)
        states = (query[q:q_end], key[k:k_end], value[k:k_end])
        each = torch.nn.functional.scaled_dot_product_attention(
            *(part.transpose(0, 1) for part in states),
            attn_mask=mask,
            scale=how["scale"],
            enable_gqa=how["enable_gqa"],
        )
        out[q:q_end] = each.transpose(0, 1)
    return out


@pytest.mark.parametrize("window", [None, 1, 2, 4, 100])
def test_one_variable_length_call_attends_as_segment_by_segment(window: int | None) -> None:
    torch.manual_seed(0)
    one = [TokenSequence((1, 2, 3), (4, 5, 6)), TokenSequence((1, 2, 3), (7,)), TokenSequence((1, 2, 3), (8, 9))]
    layout = lay_out([one, [TokenSequence((5,), (1, 2, 3, 4))]], torch.device("cpu"))
    query = torch.randn(1, 4, layout.tokens, 8)
    key, value = torch.randn(1, 2, layout.tokens, 8), torch.randn(1, 2, layout.tokens, 8)
    expected, _ = attention.attend(None, query, key, value, None, 0.3, shared_prompt=layout, sliding_window=window)
    found = attention._all_at_once(varlen, query, key, value, 0.3, window, layout)
    torch.testing.assert_close(found, expected)
