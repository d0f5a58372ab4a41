"""ORPO: fine-tuning on the chosen side that also lowers the odds of the rejected one. Hong et al. 2024."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from alignment.methods.dpo import minus_log_sigmoid
from alignment.methods.method import Method, PairLogps

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Orpo(Method):
    """−log π(y_w|x) / |y_w| − λ · log σ(log odds(y_w|x) − log odds(y_l|x)), eq. 6 and 7, from the base model.

    The odds are p / (1 − p) of p = exp(mean log-probability of a token), eq. 4.
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
