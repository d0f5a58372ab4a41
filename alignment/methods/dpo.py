"""Direct preference optimisation and the losses that share its data: pairs, and cached reference log-probs.

A log-ratio is log π(y|x) − log π_ref(y|x), summed over the completion's tokens, in nats; a margin is the chosen side's
log-ratio minus the rejected side's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from alignment.methods.method import Method, PairLogps

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class LogRatios(Method):
    """What the methods of this file share: settings, rewards, and what may be added to a pair's loss."""

    healthy: ClassVar[Mapping[str, tuple[float, float]]] = {"beta": (0.01, 1.0), "sft_weight": (0.0, 1.0)}

    beta: float = 0.1
    """Larger stays nearer the reference."""
    sft_weight: float = 0.0
    """Weight of the negative log-likelihood of the chosen completion that is added (RPO; Llama 3: 0.2)."""
    weighted: bool = False
    """Whether a pair's loss is multiplied by its weight from the data (WPO; Zhou et al. 2024)."""

    @property
    def numbers(self) -> Mapping[str, Callable[[Any], float | None]]:
        """The pair's weight, where the recipe weighs pairs."""
        return {"weight": attrgetter("weight")} if self.weighted else {}

    def objective(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """The likelihood term is a mean over a row's tokens, so that no row's gradient depends on its company.

        A weight multiplies both terms and is not normalised: a step's mean is over its rows, not over their weights.
        """
        losses = self.loss(rows, constants)
        losses = losses - self.sft_weight * rows.policy_chosen_mean if self.sft_weight else losses
        return losses if rows.weight is None else rows.weight * losses

    def rewards(self, rows: PairLogps) -> tuple[torch.Tensor, torch.Tensor]:
        """β times each log-ratio, whatever the loss."""
        return self.beta * rows.chosen_ratio, self.beta * rows.rejected_ratio


@dataclass(frozen=True, kw_only=True)
class Dpo(LogRatios):
    """DPO: −log σ(β · margin). Rafailov et al. 2023, eq. 7.

    With a target margin it is reward-aware preference optimisation (RPO; Adler et al. 2024, section 3.3.2): the reward
    margin β · margin is brought to η · target, and no further.
    """

    name = "sigmoid"

    target_margin: Literal["column", "scores"] | None = None
    """Where a pair's target margin comes from: a column of its own, or the difference of its two sides' scores."""
    margin_scale: float = 1.0
    """η: rewards to a point of the target margin."""

    @property
    def numbers(self) -> Mapping[str, Callable[[Any], float | None]]:
        """Also the margin that the pair has to reach, where the recipe sets one a pair."""
        read: dict[str, Callable[[Any], float | None]] = {"column": attrgetter("margin"), "scores": score_gap}
        target = {"target_margin": read[self.target_margin]} if self.target_margin else {}
        return {**super().numbers, **target}

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """−log σ of the reward margin, a row; beyond the pair's target margin where it has one."""
        return self._of_rewards(self.beta * rows.margin, rows)

    def first_loss(self, rows: PairLogps | None = None) -> float | None:
        """With target margins it depends on them."""
        if self.target_margin is None:
            return super().first_loss(rows)
        return None if rows is None else float(self.loss(rows).mean())

    def _of_rewards(self, margin: torch.Tensor, rows: PairLogps) -> torch.Tensor:
        """The loss of reward margins [P]; rows without target margins, such as held-out ones, are of plain DPO."""
        if rows.target_margin is None:
            return minus_log_sigmoid(margin)
        # D[a‖b] = σ(b)·log(σ(b)/σ(a)) + (1 − σ(b))·log((1 − σ(b))/(1 − σ(a))), a the reward margin and b its target
        target = self.margin_scale * rows.target_margin
        up, down = target.sigmoid(), (-target).sigmoid()
        return up * (minus_log_sigmoid(margin) - minus_log_sigmoid(target)) + down * (
            minus_log_sigmoid(-margin) - minus_log_sigmoid(-target)
        )


@dataclass(frozen=True, kw_only=True)
class ConservativeDpo(LogRatios):
    """cDPO: the expected loss where a share `label_smoothing` of the labels is flipped. Mitchell 2023, eq. 3.

    The optimum margin is finite: log((1 − ε) / ε) / β.
    """

    name = "cdpo"
    healthy: ClassVar[Mapping[str, tuple[float, float]]] = {**LogRatios.healthy, "label_smoothing": (0.01, 0.3)}

    label_smoothing: float = 0.0
    """A share of the data, which nobody but the recipe knows: it has no default that could be right."""

    def wrong(self) -> str | None:
        """That nothing is smoothed, which makes it `sigmoid`."""
        return None if self.label_smoothing else "needs label_smoothing above 0"

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """(1 − ε)·ℓ(m) + ε·ℓ(−m), a row, with ℓ(m) = −log σ(m) and m the reward margin."""
        flips, margin = self.label_smoothing, self.beta * rows.margin
        return (1 - flips) * minus_log_sigmoid(margin) + flips * minus_log_sigmoid(-margin)


@dataclass(frozen=True, kw_only=True)
class RobustDpo(LogRatios):
    """rDPO: unbiased where a share `label_smoothing` of the labels is flipped. Chowdhury et al. 2024."""

    name = "robust"
    healthy: ClassVar[Mapping[str, tuple[float, float]]] = ConservativeDpo.healthy

    label_smoothing: float = 0.0

    def wrong(self) -> str | None:
        """That nothing is smoothed, which makes it `sigmoid`."""
        return None if self.label_smoothing else "needs label_smoothing above 0"

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """((1 − ε)·ℓ(m) − ε·ℓ(−m)) / (1 − 2ε), a row: without bias where a share ε of the pairs is flipped."""
        flips, margin = self.label_smoothing, self.beta * rows.margin
        return ((1 - flips) * minus_log_sigmoid(margin) - flips * minus_log_sigmoid(-margin)) / (1 - 2 * flips)


@dataclass(frozen=True, kw_only=True)
class NormalisedDpo(Dpo):
    """DPO on mean log-ratios a token (Tülu 3's `dpo_norm`; Lambert et al. 2024): lengths do not pay."""

    name = "sigmoid_norm"
    healthy: ClassVar[Mapping[str, tuple[float, float]]] = {"beta": (1.0, 10.0), "sft_weight": (0.0, 1.0)}

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """−log σ(β·m), a row, where m takes each side's log-ratio a token."""
        return self._of_rewards(self.beta * rows.margin_per_token, rows)


@dataclass(frozen=True, kw_only=True)
class Hinge(LogRatios):
    """SLiC-HF's hinge: max(0, 1 − β · margin). Zhao et al. 2023, with log-ratios in place of log-probabilities."""

    name = "hinge"

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """max(0, 1 − m), a row, with m the reward margin."""
        return (1 - self.beta * rows.margin).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class Ipo(LogRatios):
    """IPO: (margin − 1/(2τ))², τ being `beta`. Azar et al. 2023, eq. 17."""

    name = "ipo"

    length_normalised: bool = True
    """Whether a margin is of log-ratios' means a token, as TRL has it and the paper's results are; else of sums."""

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """(m − 1/(2β))², a row, where m is the margin of log-ratios, a token each or summed."""
        margin = rows.margin_per_token if self.length_normalised else rows.margin
        return (margin - 1 / (2 * self.beta)) ** 2


@dataclass(frozen=True, kw_only=True)
class ApoZero(LogRatios):
    """APO-zero: 1 − σ(β·chosen ratio) + σ(β·rejected ratio). D'Oosterlinck et al. 2024, eq. 7.

    For chosen completions that are better than what the model writes: they become likelier, rejected ones less so.
    """

    name = "apo_zero"

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """(1 − σ(r chosen)) + σ(r rejected), a row, with rewards r = β·log-ratio."""
        # 1 − σ(x) = σ(−x), which keeps its digits where σ(x) is near 1
        return (-self.beta * rows.chosen_ratio).sigmoid() + (self.beta * rows.rejected_ratio).sigmoid()


@dataclass(frozen=True, kw_only=True)
class ApoDown(LogRatios):
    """APO-down: σ(β·chosen ratio) + 1 − σ(β·margin). D'Oosterlinck et al. 2024, eq. 8.

    For a model that writes better than the chosen completions: both become less likely, rejected ones more so.
    """

    name = "apo_down"

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """σ(r chosen) + (1 − σ(r chosen − r rejected)), a row, with rewards r = β·log-ratio."""
        return (self.beta * rows.chosen_ratio).sigmoid() + (-self.beta * rows.margin).sigmoid()


def score_gap(row: Any) -> float | None:
    """By how much the chosen side's score is above the rejected one's; None for a preference row without scores."""
    chosen, rejected = row.chosen_score, row.rejected_score
    return None if chosen is None or rejected is None else float(chosen - rejected)


def minus_log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """−log σ(x) = log(1 + exp(−x)), without overflow."""
    import torch

    return -torch.nn.functional.logsigmoid(x)
