from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from alignment.data.tokens import TokenSequence
from alignment.models import attention
from alignment.models.packing import lay_out


def documented(query: Any, key: Any, value: Any, borders: Any, scale: float | None, window: Any, gqa: bool) -> Any:
    """What torch documents of `varlen_attn`, in plain SDPA: the causal mask ends at the last query and key."""
    before, after = window
    queries, keys, longest_query, longest_key = borders
    assert after == 0
    if not gqa and query.shape[1] != key.shape[1]:
        raise ValueError("Expect query and key/value to have the same number of heads")
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
            scale=scale,
            enable_gqa=gqa,
        )
        out[q:q_end] = each.transpose(0, 1)
    return out


def of_torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):  # type: ignore[no-untyped-def]
    raise AssertionError("not called: it has no window and no scale")


def of_torch_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):  # type: ignore[no-untyped-def]
    return documented(query, key, value, (cu_seq_q, cu_seq_k, max_q, max_k), scale, window_size, False)


def of_torch_2_12(  # type: ignore[no-untyped-def]
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    return documented(query, key, value, (cu_seq_q, cu_seq_k, max_q, max_k), scale, window_size, enable_gqa)


@pytest.mark.parametrize("varlen", [of_torch_2_11, of_torch_2_12])
@pytest.mark.parametrize("window", [None, 1, 2, 4, 100])
def test_one_variable_length_call_attends_as_segment_by_segment(window: int | None, varlen: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    one = [TokenSequence((1, 2, 3), (4, 5, 6)), TokenSequence((1, 2, 3), (7,)), TokenSequence((1, 2, 3), (8, 9))]
    layout = lay_out([one, [TokenSequence((5,), (1, 2, 3, 4))]], torch.device("cpu"))
    query = torch.randn(1, 4, layout.tokens, 8)
    key, value = torch.randn(1, 2, layout.tokens, 8), torch.randn(1, 2, layout.tokens, 8)
    expected, _ = attention.attend(None, query, key, value, None, 0.3, shared_prompt=layout, sliding_window=window)
    fitting = attention.with_fewer_key_heads(varlen)
    assert fitting is not None
    found = attention._all_at_once(fitting, query, key, value, 0.3, window, layout)
    torch.testing.assert_close(found, expected)


def test_a_variable_length_attention_without_scale_and_window_is_not_used() -> None:
    assert attention.with_fewer_key_heads(of_torch_2_10) is None


def test_the_installed_torch_has_a_variable_length_attention_that_fits() -> None:
    assert attention._varlen() is not None
