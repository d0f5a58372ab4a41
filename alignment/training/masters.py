"""AdamW for bfloat16 weights, with float32 masters that hold what bfloat16 rounds away.

Forward and backward run on the bfloat16 weights alone, as the reference scorer's forward pass does.
Costs 16 bytes a trained parameter: weight 2, gradient 2, master 4, moments 8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class MasterAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019) over float32 copies of the given parameters.

    `param_groups` hold the copies; each step takes the parameters' gradients and writes the rounded result
    back. The masters are part of the state, so a resumed run goes on from unrounded weights.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        self.pairs: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        copies = []
        for group in groups:
            masters = [torch.nn.Parameter(original(weight)) for weight in group["params"]]
            self.pairs += list(zip(group["params"], masters, strict=True))
            copies.append({"params": masters, "weight_decay": group["weight_decay"]})
        super().__init__(copies, **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for weight, master in self.pairs:
            master.grad = None if weight.grad is None else weight.grad.float()
        super().step(closure)
        for weight, master in self.pairs:
            master.grad = None
            weight.copy_(master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight, _ in self.pairs:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "masters": [master.detach() for _, master in self.pairs]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        for (weight, master), saved in zip(self.pairs, state.pop("masters"), strict=True):
            master.copy_(saved)
            weight.copy_(master)
        super().load_state_dict(state)


def original(weight: torch.nn.Parameter) -> torch.Tensor:
    """The float32 tensor a weight was rounded from, where its loader left it as `original`; else a copy."""
    finer: torch.Tensor | None = weight.__dict__.pop("original", None)
    return weight.detach().float().clone() if finer is None else finer.to(weight.device)
