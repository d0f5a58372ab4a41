"""SimPO: the mean log-probability of a token is the reward, and no reference takes part. Meng et al. 2024."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from alignment.methods.dpo import minus_log_sigmoid
from alignment.methods.method import Method, PairLogps

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class SimPo(Method):
    """−log σ(β · (chosen mean − rejected mean) − γ), eq. 6."""

    name = "simpo"
    needs_reference = False
    healthy: ClassVar[Mapping[str, tuple[float, float]]] = {"beta": (2.0, 10.0), "gamma_ratio": (0.1, 0.8)}
    healthy_rate: ClassVar[tuple[float, float]] = (3e-7, 1e-6)

    beta: float = 2.0
    """Scale of the rewards, which are nats a token; there is no reference to stay near."""
    gamma_ratio: float = 0.5
    """γ / β: by how many nats a token a chosen completion shall be likelier than the rejected one."""

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """−log σ(β(mean log-prob chosen − rejected − γ/β)), a row; means are over a side's tokens."""
        margin = rows.policy_chosen_mean - rows.policy_rejected_mean
        return minus_log_sigmoid(self.beta * (margin - self.gamma_ratio))

    def rewards(self, rows: PairLogps) -> tuple[torch.Tensor, torch.Tensor]:
        """β times each side's mean log-probability of a token, eq. 4."""
        return self.beta * rows.policy_chosen_mean, self.beta * rows.policy_rejected_mean
