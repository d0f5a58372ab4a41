"""Direct preference optimisation and the losses that share its data: pairs, and cached reference log-probs.

A log-ratio is log π(y|x) − log π_ref(y|x), summed over the completion's tokens, in nats; a margin is the chosen side's
log-ratio minus the rejected side's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from alignment.methods.method import Method, PairLogps

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Dpo(Method):
    """DPO: −log σ(β · margin). Rafailov et al. 2023, eq. 7."""

    name = "sigmoid"
    healthy: ClassVar[Mapping[str, tuple[float, float]]] = {"beta": (0.01, 1.0), "sft_weight": (0.0, 1.0)}

    beta: float = 0.1
    """Larger stays nearer the reference."""
    sft_weight: float = 0.0
    """Weight of the negative log-likelihood of the chosen completion that is added (RPO; Llama 3: 0.2)."""

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        return minus_log_sigmoid(self.beta * rows.margin)

    def objective(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """The likelihood term is a mean over a row's tokens, so that no row's gradient depends on its company."""
        losses = self.loss(rows, constants)
        return losses - self.sft_weight * rows.policy_chosen_mean if self.sft_weight else losses

    def rewards(self, rows: PairLogps) -> tuple[torch.Tensor, torch.Tensor]:
        """β times each log-ratio, whatever the loss."""
        return self.beta * rows.chosen_ratio, self.beta * rows.rejected_ratio


@dataclass(frozen=True, kw_only=True)
class ConservativeDpo(Dpo):
    """cDPO: the expected loss where a share `label_smoothing` of the labels is flipped. Mitchell 2023, eq. 3.

    The optimum margin is finite: log((1 − ε) / ε) / β.
    """

    name = "cdpo"
    healthy: ClassVar[Mapping[str, tuple[float, float]]] = {**Dpo.healthy, "label_smoothing": (0.01, 0.3)}

    label_smoothing: float = 0.0
    """A share of the data, which nobody but the recipe knows: it has no default that could be right."""

    def wrong(self) -> str | None:
        return None if self.label_smoothing else "needs label_smoothing above 0"

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        flips, margin = self.label_smoothing, self.beta * rows.margin
        return (1 - flips) * minus_log_sigmoid(margin) + flips * minus_log_sigmoid(-margin)


@dataclass(frozen=True, kw_only=True)
class RobustDpo(Dpo):
    """rDPO: unbiased where a share `label_smoothing` of the labels is flipped. Chowdhury et al. 2024."""

    name = "robust"
    healthy: ClassVar[Mapping[str, tuple[float, float]]] = ConservativeDpo.healthy

    label_smoothing: float = 0.0

    def wrong(self) -> str | None:
        return None if self.label_smoothing else "needs label_smoothing above 0"

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        flips, margin = self.label_smoothing, self.beta * rows.margin
        return ((1 - flips) * minus_log_sigmoid(margin) - flips * minus_log_sigmoid(-margin)) / (1 - 2 * flips)


@dataclass(frozen=True, kw_only=True)
class NormalisedDpo(Dpo):
    """DPO on mean log-ratios a token (Tülu 3's `dpo_norm`; Lambert et al. 2024): lengths do not pay."""

    name = "sigmoid_norm"
    healthy: ClassVar[Mapping[str, tuple[float, float]]] = {"beta": (1.0, 10.0), "sft_weight": (0.0, 1.0)}

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        return minus_log_sigmoid(self.beta * rows.margin_per_token)


@dataclass(frozen=True, kw_only=True)
class Hinge(Dpo):
    """SLiC-HF's hinge: max(0, 1 − β · margin). Zhao et al. 2023, with log-ratios in place of log-probabilities."""

    name = "hinge"

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        return (1 - self.beta * rows.margin).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class Ipo(Dpo):
    """IPO: (margin − 1/(2τ))², τ being `beta`. Azar et al. 2023, eq. 17."""

    name = "ipo"

    length_normalised: bool = True
    """Whether a margin is of log-ratios' means a token, as TRL has it and the paper's results are; else of sums."""

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        margin = rows.margin_per_token if self.length_normalised else rows.margin
        return (margin - 1 / (2 * self.beta)) ** 2


@dataclass(frozen=True, kw_only=True)
class ApoZero(Dpo):
    """APO-zero: 1 − σ(β·chosen ratio) + σ(β·rejected ratio). D'Oosterlinck et al. 2024, eq. 7.

    For chosen completions that are better than what the model writes: they become likelier, rejected ones less so.
    """

    name = "apo_zero"

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        # 1 − σ(x) = σ(−x), which keeps its digits where σ(x) is near 1
        return (-self.beta * rows.chosen_ratio).sigmoid() + (self.beta * rows.rejected_ratio).sigmoid()


@dataclass(frozen=True, kw_only=True)
class ApoDown(Dpo):
    """APO-down: σ(β·chosen ratio) + 1 − σ(β·margin). D'Oosterlinck et al. 2024, eq. 8.

    For a model that writes better than the chosen completions: both become less likely, rejected ones more so.
    """

    name = "apo_down"

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        return (self.beta * rows.chosen_ratio).sigmoid() + (-self.beta * rows.margin).sigmoid()


def minus_log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """−log σ(x) = log(1 + exp(−x)), without overflow."""
    import torch

    return -torch.nn.functional.logsigmoid(x)
