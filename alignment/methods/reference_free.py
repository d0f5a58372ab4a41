"""Methods without a reference: the graph of such a recipe has no reference log-probs.

CPO (Xu et al. 2024) and SimPO (Meng et al. 2024) start from the SFT checkpoint, ORPO (Hong et al. 2024) from the base
model.
"""

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
    """CPO: DPO with a uniform reference, and the likelihood of the chosen completion in its place (Xu et al. 2024).

    −log σ(β · (log π(y_w|x) − log π(y_l|x))), eq. 3, to which the likelihood of the chosen side is added.
    """

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


@dataclass(frozen=True, kw_only=True)
class SimPo(Method):
    """SimPO: the mean log-probability of a token is the reward (Meng et al. 2024).

    −log σ(β · (chosen mean − rejected mean) − γ), eq. 6.
    """

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


@dataclass(frozen=True, kw_only=True)
class Orpo(Method):
    """ORPO: fine-tuning on the chosen side that also lowers the odds of the rejected one (Hong et al. 2024).

    −log π(y_w|x) / |y_w| − λ · log σ(log odds(y_w|x) − log odds(y_l|x)), eq. 6 and 7, from the base model. The odds
    are p / (1 − p) of p = exp(mean log-probability of a token), eq. 4.
    """

    name = "orpo"
    needs_reference = False
    start = "base_model"
    healthy: ClassVar[Mapping[str, tuple[float, float]]] = {"odds_weight": (0.05, 1.0)}
    healthy_rate: ClassVar[tuple[float, float]] = (5e-6, 2e-5)
    usual_rate = 8e-6

    odds_weight: float = 0.1
    """λ: weight of the odds-ratio term beside the likelihood of the chosen side."""

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """NLL of the chosen side a token, and λ·(−log σ) of the log odds ratio, a row."""
        odds = log_odds(rows.policy_chosen_mean) - log_odds(rows.policy_rejected_mean)
        return -rows.policy_chosen_mean + self.odds_weight * minus_log_sigmoid(odds)

    def rewards(self, rows: PairLogps) -> tuple[torch.Tensor, torch.Tensor]:
        """λ times each side's log odds."""
        return self.odds_weight * log_odds(rows.policy_chosen_mean), self.odds_weight * log_odds(
            rows.policy_rejected_mean
        )


LARGEST_MEAN = -1e-7
"""Of a mean log-probability in the odds, in nats a token: at 0 the odds are infinite and have no gradient."""


def log_odds(mean: torch.Tensor) -> torch.Tensor:
    """log(p / (1 − p)) of p = exp(mean), for mean log-probabilities at or below 0."""
    import torch

    mean = mean.clamp(max=LARGEST_MEAN)
    return mean - torch.log(-torch.expm1(mean))  # log1p(−exp(mean)) loses its digits near 0
