"""What the head holds at most: one block's logits, forward and backward, at the sizes of a GPU's passes."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignment.data.tokens import TokenSequence
from alignment.models import forward
from alignment.models.forward import head_backward, head_logps, token_logps

TOKENS, VOCABULARY = 32_768, 151_936
GIB = 1 << 30


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations have made and that are still held, but for those `given`."""

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self.live = self.most = 0
        self.given = [tensor.untyped_storage() for tensor in given]
        self.seen = {id(storage) for storage in self.given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        name, size = id(storage), storage.nbytes()
        if name in self.seen:
            return
        self.seen.add(name)
        self.live += size
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self._gone, name, size)

    def _gone(self, name: int, size: int) -> None:
        self.seen.discard(name)
        self.live -= size


@pytest.mark.parametrize(("dtype", "hidden"), [("bfloat16", 896), ("bfloat16", 4096), ("float32", 896)])
def test_the_head_of_a_large_pass_holds_less_than_one_and_a_half_gib(dtype: str, hidden: int) -> None:
    """Above states, weights and the gradients of both. Nothing is computed here: sizes alone go through.

    32,768 positions by 151,936 entries are 18.5 GiB of float32 logits; most of what is left under a hidden size of
    4,096 is one block's gradient of the head's weights.
    """
    row, kind = TokenSequence((0,), (1,) * TOKENS), getattr(torch, dtype)
    with FakeTensorMode():
        states = torch.empty(TOKENS, hidden, dtype=kind)
        weight = torch.empty(VOCABULARY, hidden, dtype=kind, requires_grad=True)
        weight.grad = torch.zeros_like(weight)
        each = torch.ones(TOKENS, dtype=torch.float64)

        def head(some: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(some, weight)

        with LiveBytes(states, weight, weight.grad) as scoring:
            head_logps(head, states, [row], VOCABULARY)
        with LiveBytes(states, weight, weight.grad) as backward:
            gradient = head_backward(head, states, [row], VOCABULARY, each)
    assert 0.1 * GIB < scoring.most < 0.75 * GIB
    assert scoring.most < backward.most - gradient.nbytes < 1.5 * GIB


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_gradient_of_blocks_is_that_of_all_positions_at_once(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In states and in the head's weights, through a soft cap, where no block is full."""
    monkeypatch.setattr(forward, "LOGITS_AT_ONCE", 32 * 50)
    torch.manual_seed(0)
    rows = [TokenSequence((0,), tuple(torch.randint(50, (count,)).tolist())) for count in (37, 1, 40)]
    states = torch.randn(78, 24, dtype=getattr(torch, dtype), requires_grad=True)
    weight = torch.randn(50, 24, dtype=states.dtype, requires_grad=True)
    each = torch.randn(78, dtype=torch.float64)

    def head(some: torch.Tensor) -> torch.Tensor:
        return 5 * (torch.nn.functional.linear(some, weight) / 5).tanh()

    found = head_backward(head, states, rows, 50, each)
    assert weight.grad is not None and states.grad is None
    ids = torch.tensor([token for row in rows for token in row.completion_ids])
    loss = (token_logps(head(states), ids) * each).sum()
    expected = torch.autograd.grad(loss, [states, weight])
    close = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}[dtype]
    for one, other in zip((found, weight.grad), expected, strict=True):
        assert float((one - other).norm() / other.norm()) < close
