"""What a preference method is: the data it takes, whether it refers to a reference, and its loss as a pure function.

Graph, plan, cache and trainer ask the method and know no method's name. A method is a frozen dataclass whose fields are
its own settings; a new one is a file beside this, and a line in the registry (`alignment/methods/__init__.py`). Nothing
here imports more than torch, and that only inside functions.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

if TYPE_CHECKING:
    import torch

M = TypeVar("M", bound="Method")

LORA_RATE = 10.0
"""How many times the learning rate of full training an adapter takes."""
HEALTHY_EPOCHS = (1.0, 2.0)
HEALTHY_RANK = (16.0, 32.0)
"""Ranks of an adapter for preferences; SFT takes more."""


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities (nat) of P pairs, each a tensor [P] of sums over a completion's tokens; and how many tokens.

    Without a reference its log-probs are NaN, so that a method that reads them by mistake has no loss.
    """

    policy_chosen: torch.Tensor
    policy_rejected: torch.Tensor
    ref_chosen: torch.Tensor
    ref_rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor

    @property
    def chosen_ratio(self) -> torch.Tensor:
        """log π(y_w|x) − log π_ref(y_w|x)."""
        return self.policy_chosen - self.ref_chosen

    @property
    def rejected_ratio(self) -> torch.Tensor:
        """log π(y_l|x) − log π_ref(y_l|x)."""
        return self.policy_rejected - self.ref_rejected

    @property
    def margin(self) -> torch.Tensor:
        """h_π(y_w, y_l) of Azar et al. 2023: the log-ratios' difference."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def margin_per_token(self) -> torch.Tensor:
        """The difference of the log-ratios' means over each side's tokens."""
        return self.chosen_ratio / self.chosen_tokens - self.rejected_ratio / self.rejected_tokens

    @property
    def policy_chosen_mean(self) -> torch.Tensor:
        """log π(y_w|x) / |y_w|: the mean over the chosen side's tokens; its negative is their likelihood loss."""
        return self.policy_chosen / self.chosen_tokens

    @property
    def policy_rejected_mean(self) -> torch.Tensor:
        """log π(y_l|x) / |y_l|."""
        return self.policy_rejected / self.rejected_tokens


def short(value: float) -> str:
    """A setting as people write it: 5e-7, 0.1, 50."""
    return re.sub(r"e([+-])0*", lambda exponent: f"e{exponent[1].strip('+')}", f"{value:g}")


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A preference method; its fields are its settings."""

    name: ClassVar[str]
    data: ClassVar[Literal["paired", "unpaired"]] = "paired"
    """What the preference manifest must hold."""
    needs_reference: ClassVar[bool] = True
    """Whether the loss reads reference log-probs; without, the graph has no reference stage."""
    start: ClassVar[Literal["sft_checkpoint", "base_model"]] = "sft_checkpoint"
    """The checkpoint that training starts from."""
    healthy: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Setting to the range that practice supports, both ends included. Values outside are allowed."""
    healthy_rate: ClassVar[tuple[float, float]] = (5e-7, 5e-6)
    """The same of the learning rate when all weights are trained; with LoRA it is `LORA_RATE` times as high."""
    usual_rate: ClassVar[float] = 5e-7
    """The learning rate of a recipe that names none."""

    @classmethod
    def of(cls: type[M], settings: Any) -> M:
        """The method with its own settings of a recipe's section; settings that are not its own are left."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """What its own settings and the learning rate are where a recipe does not name them."""
        return {"learning_rate": cls.usual_rate} | {field.name: field.default for field in fields(cls)}

    @classmethod
    def settings(cls) -> frozenset[str]:
        """The names of its own settings."""
        return frozenset(field.name for field in fields(cls))

    def wrong(self) -> str | None:
        """What is wrong with the settings, as words that follow the method's name, or None."""
        return None

    def outside_practice(self, section: Any, called: str | None = None) -> list[str]:
        """One sentence for each setting of a recipe's section that lies outside of what practice supports.

        `called` is what the recipe calls the method, by default its name here.
        """
        lora = section.lora
        low, high = self.healthy_rate
        scale = 1.0 if lora is None else LORA_RATE
        ranges = {
            "learning_rate": (section.learning_rate, (low * scale, high * scale)),
            "epochs": (section.epochs, HEALTHY_EPOCHS),
            **({} if lora is None else {"lora.rank": (lora.rank, HEALTHY_RANK)}),
            **{name: (getattr(self, name), healthy) for name, healthy in self.healthy.items()},
        }
        weights = "all weights" if lora is None else "LoRA"
        return [
            f"{name} {short(value)} is outside {short(least)} to {short(most)},"
            f" which practice supports for {called or self.name} with {weights}"
            for name, (value, (least, most)) in ranges.items()
            if not least <= value <= most
        ]

    def prepare(self, rows: PairLogps) -> Any:
        """Constants of one optimiser step where its rows are coupled (all rows of the step, no gradient)."""
        return None

    @abstractmethod
    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """The loss of each row, [P], differentiable in the policy's log-probs."""

    def objective(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """What is minimised, [P]: the loss, with the terms that a recipe adds to it."""
        return self.loss(rows, constants)

    @abstractmethod
    def rewards(self, rows: PairLogps) -> tuple[torch.Tensor, torch.Tensor]:
        """What training raises of chosen completions and lowers of rejected ones, each [P]; for people, not the loss.

        A pair counts as right where its chosen reward is the larger.
        """

    def first_loss(self) -> float | None:
        """The loss of a policy that is its reference, whatever the rows; None where theory gives none."""
        if not self.needs_reference:
            return None
        import torch

        zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        return float(self.loss(PairLogps(zero, zero, zero, zero, one, one)))
