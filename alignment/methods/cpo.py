"""CPO: DPO with a uniform reference, and the likelihood of the chosen completion in its place. Xu et al. 2024."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from alignment.methods.dpo import minus_log_sigmoid
from alignment.methods.method import Method, PairLogps

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Cpo(Method):
    """−log σ(β · (log π(y_w|x) − log π(y_l|x))), eq. 3, to which the likelihood of the chosen side is added."""

    name = "cpo"
    needs_reference = False
    healthy: ClassVar[Mapping[str, tuple[float, float]]] = {"beta": (0.01, 1.0), "sft_weight": (0.1, 2.0)}

    beta: float = 0.1
    """Scale of the rewards, which are sums over a completion."""
    sft_weight: float = 1.0
    """Weight of the negative log-likelihood of the chosen completion, a mean over its tokens; the paper's is 1."""

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """−log σ(β(log π(chosen) − log π(rejected))), a row."""
        return minus_log_sigmoid(self.beta * (rows.policy_chosen - rows.policy_rejected))

    def objective(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """The loss and `sft_weight` times the NLL of the chosen side a token."""
        return self.loss(rows, constants) - self.sft_weight * rows.policy_chosen_mean

    def rewards(self, rows: PairLogps) -> tuple[torch.Tensor, torch.Tensor]:
        """β times each side's log-probability."""
        return self.beta * rows.policy_chosen, self.beta * rows.policy_rejected
