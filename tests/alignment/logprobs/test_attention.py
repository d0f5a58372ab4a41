from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from alignment.data.tokens import TokenSequence
from alignment.models import attention, capped
from alignment.models.capped import blocks
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
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    num_splits=None,
):
    assert num_splits == 1
    return documented(query, key, value, (cu_seq_q, cu_seq_k, max_q, max_k), scale, window_size, enable_gqa)


@pytest.mark.parametrize("varlen", [of_torch_2_11, of_torch_2_12])
@pytest.mark.parametrize("window", [None, 1, 2, 4, 100])
def test_one_variable_length_call_attends_as_segment_by_segment(window: int | None, varlen: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    one = [TokenSequence((1, 2, 3), (4, 5, 6)), TokenSequence((1, 2, 3), (7,)), TokenSequence((1, 2, 3), (8, 9))]
    layout = lay_out([one, [TokenSequence((5,), (1, 2, 3, 4))]], torch.device("cpu"))
    query = torch.randn(1, 4, layout.tokens, 8, requires_grad=True)
    key, value = (torch.randn(1, 2, layout.tokens, 8, requires_grad=True) for _ in range(2))
    expected, _ = attention.attend(None, query, key, value, None, 0.3, shared_prompt=layout, sliding_window=window)
    fitting = attention.with_fewer_key_heads(varlen)
    assert fitting is not None
    found = attention._all_at_once(fitting, query, key, value, 0.3, window, layout)
    torch.testing.assert_close(found, expected)
    given = torch.randn(found.shape)
    gradients = (torch.autograd.grad(out, (query, key, value), given) for out in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def documented_flex(query: Any, key: Any, value: Any, **how: Any) -> Any:
    """What torch documents of `flex_attention`, in plain products: torch's own has no backward pass on a CPU."""
    mask, repeats = how["block_mask"], query.shape[1] // key.shape[1]
    assert how["enable_gqa"] and mask.seq_lengths == (query.shape[2], key.shape[2])
    places = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])
    looked_at = mask.to_dense()[0, 0].bool().repeat_interleave(128, 0).repeat_interleave(128, 1)
    sees = mask.mask_mod(0, 0, *places)
    assert not (sees & ~looked_at).any(), "what is seen is in a block that is named"
    scores = query @ key.repeat_interleave(repeats, 1).transpose(2, 3) * how["scale"]
    scores = how["score_mod"](scores, 0, 0, *places).masked_fill(~sees, float("-inf"))
    return scores.softmax(-1) @ value.repeat_interleave(repeats, 1)


@pytest.mark.parametrize("flex", ["torch", "documented"])
@pytest.mark.parametrize("window", [None, 1, 100, 1000])
def test_one_flex_call_caps_logits_as_segment_by_segment(
    window: int | None, flex: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments end within blocks of 128, at their ends, and span several."""
    if flex == "documented":
        monkeypatch.setattr(capped, "_flex", lambda compiled: documented_flex)
    torch.manual_seed(0)
    prompt = tuple(range(130))
    groups = [
        [TokenSequence(prompt, tuple(range(length))) for length in (4, 129, 300)],
        [TokenSequence((5,), tuple(range(128))), TokenSequence((5,), (1,))],
    ]
    layout = lay_out(groups, torch.device("cpu"))
    query = torch.randn(1, 4, layout.tokens, 8, requires_grad=True)
    key, value = (torch.randn(1, 2, layout.tokens, 8, requires_grad=True) for _ in range(2))
    how = {"shared_prompt": layout, "sliding_window": window, "softcap": 2.0}
    expected, _ = attention.attend(None, query, key, value, None, 0.7, **how)
    with torch.set_grad_enabled(flex == "documented"):
        found = attention._capped_at_once(query, key, value, 0.7, window, 2.0, layout)
    torch.testing.assert_close(found, expected)
    if flex == "torch":
        return
    given = torch.randn(found.shape)
    gradients = (torch.autograd.grad(out, (query, key, value), given) for out in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_segment_has_blocks_of_its_own_which_look_at_no_other_segments() -> None:
    prompt = tuple(range(130))
    long = TokenSequence(prompt, tuple(range(300)))
    alone, behind = (
        blocks(lay_out(groups, torch.device("cpu")), 200)
        for groups in ([[long]], [[TokenSequence((1,), (2, 3))], [long]])
    )
    rows = alone.mask.kv_num_blocks[0, 0, :5], behind.mask.kv_num_blocks[0, 0, 2:7]
    assert rows[0].tolist() == rows[1].tolist() == [1, 2, 3, 4, 3]
    shifted = [
        (mask.kv_indices[0, 0, row + first, :count] - columns).tolist()
        for mask, first, columns in ((alone.mask, 0, 0), (behind.mask, 2, 2))
        for row, count in enumerate(rows[0].tolist())
    ]
    assert shifted[:5] == shifted[5:]


def test_gradients_of_a_prompts_copies_are_added_in_float32_in_one_order() -> None:
    rows = [TokenSequence((1, 2), (3, 4)), TokenSequence((1, 2), (5, 6)), TokenSequence((1, 2), (7, 8))]
    index = lay_out([rows], torch.device("cpu")).varlen
    states = torch.zeros(len(index.copies[0][0]), 1, 1, dtype=torch.bfloat16, requires_grad=True)
    gathered = attention._gather()(states, index)
    own, *behind = [place for place, token in enumerate(index.where.tolist()) if token == 0]
    given = torch.zeros_like(gathered)
    given[own], given[behind] = 256.0, 1.0  # 256 + 1 in bfloat16 is 256
    (gradient,) = torch.autograd.grad(gathered, states, given)
    assert len(behind) == 3 and float(gradient[0]) == 260.0  # 259 rounds to it, once
    assert [len(tokens) for tokens, _ in index.copies[1:]] == [2, 2, 2], "of the prompt's two tokens"


def test_a_variable_length_attention_without_scale_and_window_is_not_used() -> None:
    assert attention.with_fewer_key_heads(of_torch_2_10) is None


def test_the_installed_torch_has_a_variable_length_attention_that_fits() -> None:
    assert attention._varlen() is not None
