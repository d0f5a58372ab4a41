"""How a recipe turns text into tokens and trains on them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from alignment.methods import METHODS, method_of
from alignment.recipe.data import DataSource, ModelSource, Section

Precision = Literal["float32", "bfloat16"]


class TokenPolicy(Section):
    """How a row becomes ids; part of every sequence key."""

    max_length: int = Field(default=2048, ge=2)
    """Most tokens of prompt + completion, BOS and EOS counted."""
    truncation: Literal["drop", "keep_start", "keep_end"] = "drop"
    """What happens to longer rows: dropped and counted, or cut at the end or at the prompt's start."""


class Lora(Section):
    """LoRA adapter (Hu et al. 2021)."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class Optimisation(Section):
    """What SFT and DPO share. Batch sizes count rows over all devices."""

    speed_only: ClassVar[frozenset[str]] = frozenset({"save_steps"})

    learning_rate: float = Field(gt=0)
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=32, ge=1)
    """Rows an optimiser step sees, over all devices and accumulation steps."""
    micro_batch_size: int = Field(default=4, ge=1)
    """Rows a device holds at once; what is missing to batch_size is accumulated."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Precision = "bfloat16"
    gradient_checkpointing: bool = False
    save_steps: int = Field(default=200, ge=1)
    """Optimiser steps between checkpoints that an interrupted run resumes from."""
    lora: Lora | None = None
    """LoRA instead of full fine-tuning; merged into the weights when training ends."""


class SftTraining(Optimisation):
    """How supervised fine-tuning is done, whatever the data."""

    learning_rate: float = Field(default=2e-5, gt=0)
    max_length: int = Field(default=2048, ge=2)
    """Longer conversations are dropped and counted."""
    eval_steps: int = Field(default=200, ge=1)
    """Optimiser steps between two looks at the held-out loss."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many looks without a lower held-out loss and keep the best; None trains all epochs."""

    @classmethod
    def of(cls, settings: SftTraining) -> SftTraining:
        """Only what training depends on, of a section that may say more."""
        return cls(**{name: getattr(settings, name) for name in SftTraining.model_fields})


class Sft(SftTraining):
    """Supervised fine-tuning, or a checkpoint adopted as it is."""

    adopt: ModelSource | None = None
    """Take this checkpoint as the SFT checkpoint and train nothing."""
    dataset: DataSource | None = None
    max_rows: int | None = Field(default=None, ge=1)
    """A seeded sample of this many rows instead of all."""
    held_out_fraction: float = Field(default=0.02, ge=0, lt=0.5)
    """Share of conversations, by hash of the prompt, whose loss is watched instead of trained on."""

    @model_validator(mode="after")
    def _adopt_or_train(self) -> Sft:
        if (self.adopt is None) == (self.dataset is None):
            raise ValueError("give either adopt (a finished checkpoint) or dataset (to train on)")
        return self


class Reference(Section):
    """The reference log-prob pass. Batch size changes speed, never values or keys."""

    precision: Precision = "bfloat16"
    """Compute dtype; must equal the policy's, so that the first DPO loss is what theory says."""
    batch_tokens: int = Field(default=16_384, ge=1)
    """Padded tokens of one forward pass."""


class Dpo(Optimisation):
    """Direct preference optimisation (Rafailov et al. 2023), from cached reference log-probs."""

    learning_rate: float = Field(default=5e-7, gt=0)
    loss: Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"] = "sigmoid"
    """The method; `robust` is rDPO with label_smoothing as the flip rate."""
    beta: float = Field(default=0.1, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the negative log-likelihood of the chosen completion added to the loss (RPO)."""

    @model_validator(mode="after")
    def _settings_of_its_method(self) -> Dpo:
        every = {name for method in METHODS.values() for name in method.settings()}
        for name in sorted(every - METHODS[self.loss].settings()):
            if getattr(self, name) != type(self).model_fields[name].default:
                takers = [loss for loss, method in METHODS.items() if name in method.settings()]
                raise ValueError(f"{name} counts only with loss: {' or '.join(takers)}")
        if wrong := method_of(self).wrong():
            raise ValueError(wrong)
        return self
