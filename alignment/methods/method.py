"""What a preference method is: the data it takes, whether it refers to a reference, and its loss as a pure function.

Graph, plan, cache and trainer ask the method and know no method's name. A method is a frozen dataclass whose fields are
its own settings; a new one is a file beside this, and a line in the registry (`alignment/methods/__init__.py`). Nothing
here imports more than torch, and that only inside functions.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

if TYPE_CHECKING:
    import torch

M = TypeVar("M", bound="Method")

LORA_RATE = 10.0
"""How many times the learning rate of full training an adapter takes."""
HEALTHY_EPOCHS = (1.0, 2.0)
HEALTHY_BETAS = ((0.85, 0.95), (0.95, 0.999))
"""AdamW's β₁ and β₂."""
HEALTHY_SFT_ROWS = (0.05, 0.1)
"""SFT rows of a step, as a fraction of its preferences."""
HEALTHY_RANK = (16.0, 32.0)
"""Ranks of an adapter for preferences; SFT takes more."""


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities (nat) of P pairs, each a tensor [P] of sums over a completion's tokens; and how many tokens.

    Without a reference its log-probs are NaN, so that a method that reads them by mistake has no loss. The last four
    are sums over a completion's first min(|y_w|, |y_l|) tokens, for methods that ask for them (`Method.first_tokens`).
    """

    policy_chosen: torch.Tensor
    policy_rejected: torch.Tensor
    ref_chosen: torch.Tensor
    ref_rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    policy_chosen_first: torch.Tensor | None = None
    policy_rejected_first: torch.Tensor | None = None
    ref_chosen_first: torch.Tensor | None = None
    ref_rejected_first: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    """Of each pair, from the data; None where the method asks for none."""
    target_margin: torch.Tensor | None = None
    """By how much each chosen side is better, from the data, on its scale; None where the method asks for none."""

    @classmethod
    def of(cls, rows: Sequence[Any], policy: Mapping[str, torch.Tensor]) -> PairLogps:
        """Of a step's pairs (`PolicyPair`); `policy` has the policy's log-probs by the name of their sequence."""
        more = {
            name: column(getattr(row, name) for row in rows)
            for name in ("weight", "target_margin")
            if rows and not math.isnan(getattr(rows[0], name, math.nan))
        }
        if "chosen_first" in policy:
            more |= {
                "policy_chosen_first": policy["chosen_first"],
                "policy_rejected_first": policy["rejected_first"],
                "ref_chosen_first": column(row.ref_chosen_first_logp for row in rows),
                "ref_rejected_first": column(row.ref_rejected_first_logp for row in rows),
            }
        return cls(
            policy_chosen=policy["chosen"],
            policy_rejected=policy["rejected"],
            ref_chosen=column(row.ref_chosen_logp for row in rows),
            ref_rejected=column(row.ref_rejected_logp for row in rows),
            chosen_tokens=column(row.chosen.counted for row in rows),
            rejected_tokens=column(row.rejected.counted for row in rows),
            **more,
        )

    @property
    def sides(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The policy's log-probs of the completions to prefer, and of those not to."""
        return self.policy_chosen, self.policy_rejected

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


@dataclass(frozen=True)
class LabelledLogps:
    """Log-probabilities (nat) of N completions with a label, each a tensor [N] of sums over a completion's tokens."""

    policy_completion: torch.Tensor
    ref_completion: torch.Tensor
    completion_tokens: torch.Tensor
    desirable: torch.Tensor
    """Labels, of bool."""

    @classmethod
    def of(cls, rows: Sequence[Any], policy: Mapping[str, torch.Tensor]) -> LabelledLogps:
        """Of a step's completions (`PolicyCompletion`); `policy` as `PairLogps.of` has it."""
        import torch

        return cls(
            policy_completion=policy["completion"],
            ref_completion=column(row.ref_completion_logp for row in rows),
            completion_tokens=column(row.completion.counted for row in rows),
            desirable=torch.tensor([row.label for row in rows], dtype=torch.bool),
        )

    @property
    def ratio(self) -> torch.Tensor:
        """log π(y|x) − log π_ref(y|x)."""
        return self.policy_completion - self.ref_completion

    @property
    def sides(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The policy's log-probs of the desirable completions, and of the others."""
        return self.policy_completion[self.desirable], self.policy_completion[~self.desirable]


def column(values: Iterable[float]) -> torch.Tensor:
    """Values as a float64 tensor."""
    import torch

    return torch.tensor(list(values), dtype=torch.float64)


def short(value: float) -> str:
    """A setting as people write it: 5e-7, 0.1, 50."""
    return re.sub(r"e([+-])0*", lambda exponent: f"e{exponent[1].strip('+')}", f"{value:g}")


def betas_in_practice(betas: tuple[float, float]) -> dict[str, tuple[float, tuple[float, float]]]:
    """Name to (value, healthy range) of AdamW's two β."""
    names = ("adam_betas β₁", "adam_betas β₂")
    return dict(zip(names, zip(betas, HEALTHY_BETAS, strict=True), strict=True))


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A preference method; its fields are its settings. `rows` are of the class of its `logps`."""

    name: ClassVar[str]
    data: ClassVar[Literal["paired", "unpaired"]] = "paired"
    """What the preference manifest must hold."""
    logps: ClassVar[type[Any]] = PairLogps
    """The log-probs that the loss takes; `of` makes them of a step's rows and the policy's sums."""
    sequences: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    """A row's sequences whose log-probs the loss is differentiated in."""
    coupled: ClassVar[tuple[str, ...]] = ()
    """A row's sequences whose log-probs couple the rows of a step: `prepare` reads them, without a gradient."""
    first_tokens: ClassVar[bool] = False
    """Whether the loss also reads the sums over each completion's first min(lengths) tokens, of the same forward."""
    needs_reference: ClassVar[bool] = True
    """Whether the loss reads reference log-probs; without, the graph has no reference stage."""
    on_policy: ClassVar[bool] = False
    """Whether the policy is trained on answers that it samples meanwhile, and not on the preferences."""
    stage: ClassVar[str] = "policy_checkpoint"
    """The stage that trains it, by name."""
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

    @property
    def numbers(self) -> Mapping[str, Callable[[Any], float | None]]:
        """What the loss reads of a preference row's own numbers: the name that `PairLogps` has for it (`weight`,
        `target_margin`), and how it is read; None stands for what a row lacks."""
        return {}

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
            **betas_in_practice(section.adam_betas),
            **({"sft_rows_fraction": (fraction, HEALTHY_SFT_ROWS)} if (fraction := section.sft_rows_fraction) else {}),
            **({} if lora is None else {"lora.rank": (lora.rank, HEALTHY_RANK)}),
            **{name: (getattr(self, name), healthy) for name, healthy in self.healthy.items()},
        }
        weights = "all weights" if lora is None else "LoRA"
        sizes = {"learning_rate": " (models of 1B and more)"}  # what small ones bear is published nowhere
        return [
            f"{name} {short(value)} is outside {short(least)} to {short(most)},"
            f" which practice supports for {called or self.name} with {weights}{sizes.get(name, '')}"
            for name, (value, (least, most)) in ranges.items()
            if not least <= value <= most
        ]

    def prepare(self, ratios: torch.Tensor) -> Any:
        """Constants of one optimiser step where its rows are coupled; None where they are not.

        `ratios` [rows of the step, on all ranks alike] are the coupled sequences' log π − log π_ref, without gradient.
        """
        return None

    def shown(self, constants: Any) -> dict[str, float]:
        """A step's constants as the training's history names them."""
        return {}

    @abstractmethod
    def loss(self, rows: Any, constants: Any = None) -> torch.Tensor:
        """The loss of each row, [P], differentiable in the policy's log-probs."""

    def objective(self, rows: Any, constants: Any = None) -> torch.Tensor:
        """What is minimised, [P]: the loss, with the terms that a recipe adds to it."""
        return self.loss(rows, constants)

    @abstractmethod
    def rewards(self, rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """What training raises of chosen completions and lowers of rejected ones; for people, not the loss.

        Of pairs each is [P], and a pair counts as right where its chosen reward is the larger.
        """

    def right(self, rows: Any, constants: Any = None) -> torch.Tensor:
        """1 for each row [P] that the policy gets right by its rewards, 0 for the others; a tie is a half."""
        chosen, rejected = self.rewards(rows)
        return (chosen > rejected).double() + 0.5 * (chosen == rejected).double()

    def first_loss(self, rows: Any = None) -> float | None:
        """The mean loss of a policy that is its reference; None where theory gives none.

        It is the same whatever the rows; where it is not (weights by label), that of `rows`, and None without them.
        """
        if not self.needs_reference:
            return None
        import torch

        zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        return float(self.loss(PairLogps(zero, zero, zero, zero, one, one, zero, zero, zero, zero)))
