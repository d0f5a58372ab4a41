"""GRPO: the policy samples its own answers, and those that score above their group's mean become likelier.

Shao et al. 2024. It is on-policy: it takes no preferences, and TRL's trainer has its loss. What stands here is what
graph, plan and evaluations ask of every method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from alignment.methods.method import Method, PairLogps

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Grpo(Method):
    """The preferences of the recipe are never trained on: their held-out pairs measure the policy, as with others."""

    name = "grpo"
    needs_reference = False
    on_policy = True
    stage = "on_policy_checkpoint"
    healthy: ClassVar[Mapping[str, tuple[float, float]]] = {}
    healthy_rate: ClassVar[tuple[float, float]] = (1e-7, 5e-6)
    usual_rate: ClassVar[float] = 1e-6

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """Raises, as a pair has no loss here: it is of answers that the policy samples."""
        raise RuntimeError("grpo has no loss on pairs: TRL's trainer computes it on sampled answers")

    def rewards(self, rows: PairLogps) -> tuple[torch.Tensor, torch.Tensor]:
        """Each side's mean log-probability of a token: which side of a pair the policy itself would sooner write."""
        return rows.policy_chosen_mean, rows.policy_rejected_mean
