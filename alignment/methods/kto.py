"""KTO: thumbs up and down, each a completion with its label. Ethayarajh et al. 2024."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from alignment.methods.method import LabelledLogps, Method

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Kto(Method):
    """λ_y − v(x, y), eq. 7: λ_D · (1 − σ(β · (r − z₀))) of desirable rows, λ_U · (1 − σ(β · (z₀ − r))) of others.

    r is the log-ratio of the row's own completion, and z₀ the divergence from the reference that is estimated from the
    rows' prompts with the completions of their partners, which no gradient goes through. A row's partner
    is the next one by row id, of its shard's rows on the same side of the split.
    """

    name = "kto"
    data = "unpaired"
    logps = LabelledLogps
    sequences = ("completion",)
    coupled = ("partner",)
    healthy: ClassVar[Mapping[str, tuple[float, float]]] = {
        "beta": (0.01, 0.5),
        "desirable_weight": (0.5, 2.0),
        "undesirable_weight": (0.5, 2.0),
    }

    beta: float = 0.1
    """Larger stays nearer the reference."""
    desirable_weight: float = 1.0
    """λ_D: weight of rows with a thumb up."""
    undesirable_weight: float = 1.0
    """λ_U: weight of rows with a thumb down."""

    def wrong(self) -> str | None:
        """That neither kind of row has a weight."""
        both = self.desirable_weight, self.undesirable_weight
        return None if any(both) else "needs a desirable_weight or an undesirable_weight above 0"

    def prepare(self, ratios: torch.Tensor) -> float:
        """z₀ ≥ 0: a divergence is none below 0, though its estimate may be."""
        return max(0.0, float(ratios.double().mean())) if len(ratios) else 0.0

    def shown(self, constants: Any) -> dict[str, float]:
        """z₀ of the step, in nats."""
        return {"kl": constants}

    def loss(self, rows: LabelledLogps, constants: Any = None) -> torch.Tensor:
        """`constants` is z₀, 0 where it is not given, as for a policy that is its reference."""
        weights = self.weights(rows)
        # 1 − σ(x) = σ(−x), which keeps its digits where σ(x) is near 1
        return weights * (-self.beta * self._signs(rows) * (rows.ratio - (constants or 0.0))).sigmoid()

    def rewards(self, rows: LabelledLogps) -> tuple[torch.Tensor, torch.Tensor]:
        """β times the log-ratios of desirable rows, and of the others."""
        rewards = self.beta * rows.ratio
        return rewards[rows.desirable], rewards[~rows.desirable]

    def right(self, rows: LabelledLogps, constants: Any = None) -> torch.Tensor:
        """A row is right where its log-ratio lies above z₀ and its thumb up, or below and its thumb down."""
        over = self._signs(rows) * (rows.ratio - (constants or 0.0))
        return (over > 0).double() + 0.5 * (over == 0).double()

    def first_loss(self, rows: LabelledLogps | None = None) -> float | None:
        """Half of the rows' mean weight: r = z₀ = 0."""
        if rows is not None:
            return 0.5 * float(self.weights(rows).mean())
        return 0.5 * self.desirable_weight if self.desirable_weight == self.undesirable_weight else None

    def weights(self, rows: LabelledLogps) -> torch.Tensor:
        """λ_y of each row."""
        import torch

        up, down = (
            torch.tensor(each, dtype=torch.float64) for each in (self.desirable_weight, self.undesirable_weight)
        )
        return torch.where(rows.desirable, up, down)

    def _signs(self, rows: LabelledLogps) -> torch.Tensor:
        return 2 * rows.desirable.double() - 1
