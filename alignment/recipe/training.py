"""How a recipe trains: what SFT and preference training share, SFT, and the method with its settings."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from alignment.methods import LOSS, METHOD, METHODS, Method, Spelling
from alignment.methods.method import betas_in_practice, short
from alignment.models.quantised import Quantisation
from alignment.recipe.data import DataSource, ModelSource, Section
from alignment.recipe.forward import Lora, Precision

Beta = Annotated[float, Field(ge=0, lt=1)]


class Optimisation(Section):
    """What SFT and DPO share. Batch sizes count rows over all devices."""

    speed_only: ClassVar[frozenset[str]] = frozenset({"save_steps", "sharded"})
    absent_by_default: ClassVar[frozenset[str]] = frozenset({"max_steps", "adam_betas", "tf32", "router_aux_loss_coef"})

    learning_rate: float = Field(gt=0)
    """Highest learning rate of AdamW, reached after the warm-up."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the training rows; a fraction ends within one."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps after which training ends although epochs remain; null trains all epochs. Warm-up and schedule
    span the steps that are trained, so the learning rate ends where it would after whole epochs."""
    batch_size: int = Field(default=32, ge=1)
    """Rows of one optimiser step, over all devices and accumulation steps."""
    micro_batch_size: int = Field(default=4, ge=1)
    """Rows that a device holds at once, at most; batch_size is reached by accumulating gradients, and must be a
    multiple of this (with `router_aux_loss_coef`, of this times the number of devices). Halve it when memory runs
    out."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the optimiser steps in which the learning rate rises from 0, as a fraction."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    """Course of the learning rate after the warm-up: down to 0 on a line or a cosine, or constant."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay; 0 turns it off."""
    adam_betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's β₁ and β₂: the shares that its running means of gradients and of squared gradients keep from one step to
    the next. β₂ of 0.95 forgets a burst of large gradients sooner."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient over all weights; a larger gradient is scaled down to it."""
    precision: Precision = "bfloat16"
    """Precision of weights and computation. With bfloat16 the optimiser keeps float32 master weights."""
    tf32: bool = False
    """`precision: float32` only: matrix products on a GPU round their operands to TF32, which has 10 bits of mantissa;
    several times as fast, and as coarse as float16. The reference log-probs are computed the same way and have keys of
    their own. On a CPU it has no effect."""
    router_aux_loss_coef: float = Field(default=0.0, ge=0)
    """Mixtures of experts only: weight of the term that spreads tokens evenly over experts, beside the loss; 0 adds
    none, and 0.001 is usual. SFT takes it over the tokens of a micro batch, preference training over those of a
    sequence, so that a row weighs the same in any company."""
    gradient_checkpointing: bool | Literal["selective"] = False
    """Computes activations again in the backward pass instead of keeping them. `true`: of whole layers, the least
    memory for about a third more time. `selective`: of norms and MLPs, which are most of the memory, for about a sixth
    more."""
    sharded: bool = False
    """Cuts weights, gradients and the optimiser's state over the GPUs of a slot, for a model that one GPU cannot hold;
    false keeps a whole copy on each, which is faster where it fits. It counts where the pool's launcher starts more
    than one process, and changes no result beyond rounding."""
    save_steps: int = Field(default=200, ge=1)
    """Optimiser steps from one trainer checkpoint to the next. An interrupted run continues from the last; the number
    changes no result."""
    lora: Lora | None = None
    """LoRA instead of full fine-tuning; merged into the weights when training ends."""

    @model_validator(mode="after")
    def _tf32_needs_float32(self) -> Optimisation:
        if self.tf32 and self.precision != "float32":
            raise ValueError(f"tf32 counts only with precision: float32, and precision is {self.precision}")
        return self

    @property
    def quantise(self) -> Quantisation | None:
        """How frozen weights are kept beside the adapter; None where they are not quantised."""
        return None if self.lora is None else self.lora.quantise

    @property
    def most_rows(self) -> int | None:
        """Rows that `max_steps` steps take; None without a limit."""
        return None if self.max_steps is None else self.max_steps * self.batch_size


class SftTraining(Optimisation):
    """How supervised fine-tuning is done, whatever the data."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """Highest learning rate of AdamW, reached after the warm-up; commonly 5e-6 to 2e-5 for a whole model, ten times
    that with LoRA."""
    max_length: int = Field(default=2048, ge=2)
    """Longest conversation in tokens; longer ones are left out and counted."""
    eval_steps: int = Field(default=200, ge=1)
    """Optimiser steps from one measurement of the held-out loss to the next."""
    patience: int | None = Field(default=None, ge=1)
    """Training stops after this many measurements without a lower held-out loss, and the best weights are kept; null
    trains all epochs."""

    @model_validator(mode="after")
    def _best_weights_of_a_whole_model(self) -> SftTraining:
        for name, value in {"patience": self.patience, "lora.quantise": self.quantise}.items():
            if self.sharded and value is not None:
                raise ValueError(f"{name} needs the whole model in one process: leave out {name} or sharded")
        return self

    def outside_practice(self) -> list[str]:
        """One sentence for each setting that lies outside of what practice supports for SFT; none is refused."""
        return [
            f"sft.{name} {short(value)} is outside {short(least)} to {short(most)}, which practice supports"
            for name, (value, (least, most)) in betas_in_practice(self.adam_betas).items()
            if not least <= value <= most
        ]

    @classmethod
    def of(cls, settings: SftTraining) -> SftTraining:
        """The settings that training depends on, without the section's other keys (`adopt`, `dataset`, …)."""
        return cls(**{name: getattr(settings, name) for name in SftTraining.model_fields})


LORA_RATE = 10.0
"""How many times the rate of all weights an adapter takes."""
NEAR_SFT = 0.5
"""Share of SFT's learning rate from which preference training repeats SFT's; practice takes 1/40 to 1/10."""


def as_fast_as_sft(settings: Optimisation, sft: SftTraining) -> str | None:
    """A sentence where preference training takes about the learning rate of the SFT that it starts from."""
    rates = [each.learning_rate / (1 if each.lora is None else LORA_RATE) for each in (settings, sft)]
    if rates[0] < NEAR_SFT * rates[1]:
        return None
    of_adapter = " (an adapter's is a tenth of it)" if settings.lora is not None or sft.lora is not None else ""
    return (
        f"learning_rate {short(settings.learning_rate)} is {rates[0] / rates[1]:.2g} times SFT's"
        f" {short(sft.learning_rate)}{of_adapter}, and practice takes a tenth or less: at SFT's rate preferences spoil"
        " what SFT taught"
    )


class Sft(SftTraining):
    """Supervised fine-tuning, or a checkpoint adopted as it is."""

    adopt: ModelSource | None = None
    """Take this checkpoint as the SFT checkpoint and train nothing; in place of `dataset`."""
    dataset: DataSource | None = None
    """Conversations to fine-tune on; in place of `adopt`."""
    max_rows: int | None = Field(default=None, ge=1)
    """Rows of a seeded sample to train on instead of all; null takes all."""
    held_out_fraction: float = Field(default=0.02, ge=0, lt=0.5)
    """Fraction of the conversations that are held out: their loss is measured and they are never trained on. A hash of
    the prompt decides."""

    @model_validator(mode="after")
    def _adopt_or_train(self) -> Sft:
        if (self.adopt is None) == (self.dataset is None):
            raise ValueError("give either adopt (a finished checkpoint) or dataset (to train on)")
        return self


class Stop(Section):
    """When training on preferences ends early. Each condition is looked at on held-out pairs, every `eval_steps`; the
    policy is that of the step at which training ended. Without a condition nothing ends it, and the looks are the
    curves of the held-out pairs alone."""

    eval_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps from one look at the held-out pairs to the next; null looks ten times in a run."""
    median_margin: float | None = Field(default=None, gt=0)
    """Largest median of the reward margin, β · (Δchosen − Δrejected); above 5 a policy is usually over-fitted."""
    kl: float | None = Field(default=None, gt=0)
    """Largest KL(policy ‖ start checkpoint) in nats a response, over a few sampled responses; 5 to 10 is far. A look
    then loads the start checkpoint beside the policy, unless LoRA is trained."""
    patience: int | None = Field(default=None, ge=1)
    """Looks in a row without a better `metric` after which training ends; null never ends it so."""
    metric: Literal["accuracy", "loss", "margin"] = "accuracy"
    """The measurement of held-out pairs that `patience` waits for."""


class Dpo(Optimisation):
    """The older spelling of `optimise`, with a method's older name under `loss`. Both spell the same training."""

    spelling: ClassVar[Spelling] = LOSS
    speed_only: ClassVar[frozenset[str]] = Optimisation.speed_only | {
        "micro_batch_size",
        "gradient_checkpointing",
    }
    absent_by_default: ClassVar[frozenset[str]] = Optimisation.absent_by_default | {
        "gamma_ratio",
        "length_normalised",
        "ld_alpha",
        "desirable_weight",
        "undesirable_weight",
        "odds_weight",
        "weighted",
        "target_margin",
        "margin_scale",
        "sft_rows_fraction",
        "stop",
        "keep_steps",
        "keep_by",
    }

    micro_batch_size: int = Field(default=4, ge=1)
    """Ignored: a step's rows go through in passes of `reference.batch_tokens` tokens, whatever their number. Of
    `grpo`: sampled answers that go through at once."""

    learning_rate: float = Field(default=5e-7, gt=0)
    """Highest learning rate of AdamW, reached after the warm-up; commonly 5e-7 to 5e-6 for a whole model, ten times
    that with LoRA. Too high a rate spoils the model before it learns the preferences. The default of `orpo`, which
    trains from the base model, is 8e-6."""
    loss: Annotated[str, AfterValidator(LOSS.known), WithJsonSchema(LOSS.schema)] = "sigmoid"
    """The method; docs/methods.md compares them. `sigmoid`: DPO (Rafailov et al. 2023). `hinge`: SLiC-HF (Zhao et al.
    2023). `ipo`: IPO (Azar et al. 2023). `cdpo` (Mitchell 2023) and `robust` (rDPO, Chowdhury et al. 2024): for data
    with some wrong labels. `sigmoid_norm`: DPO of log-ratios per token (Lambert et al. 2024). `apo_zero`, `apo_down`:
    APO, for chosen completions better or worse than the model's own (D'Oosterlinck et al. 2024). `ld_dpo`: DPO in which
    the excess of the longer side counts less (Liu et al. 2024). `kto`: for completions with a thumb up or down; a pair
    counts as two of them (Ethayarajh et al. 2024). `simpo` (Meng et al. 2024) and `cpo` (Xu et al. 2024) take no
    reference, and their graph has no reference log-probs. `orpo` (Hong et al. 2024) takes none either, and trains from
    the base model: its recipe has no `sft`. `grpo` (Shao et al. 2024) is on-policy: it trains on answers that the
    policy samples, and needs the section `on_policy`."""
    beta: float = Field(default=0.1, gt=0)
    """β: a larger value keeps the policy nearer to the reference. Usual values are 0.01 to 1, and 1 to 10 with
    `sigmoid_norm`, whose log-ratios are per token. `ipo` aims at a margin of 1 / (2β). Usual values
    with `kto` are 0.01 to 0.5. With `simpo`, whose default is 2, it scales rewards per token; usual values are 2 to
    10."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed fraction of pairs whose chosen and rejected sides are swapped. `cdpo` and `robust` need it; the other
    methods refuse it."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen completion's negative log-likelihood, in nats per token, that is added to the loss (RPO);
    keeps what SFT taught. 0 adds none. It is part of `cpo`, whose default is 1; `simpo` and `orpo` refuse it."""
    gamma_ratio: float = Field(default=0.5, ge=0)
    """`simpo` only: γ/β, by how many nats per token a chosen completion shall be likelier than the rejected one. Usual
    values are 0.1 to 0.8."""
    length_normalised: bool = True
    """`ipo` only: its margin is of mean log-ratios per token, as in TRL; false takes sums, as the paper writes it."""
    odds_weight: float = Field(default=0.1, ge=0)
    """`orpo` only: λ, the weight of the odds ratio beside the likelihood of the chosen completion. Usual values are
    0.05 to 1."""

    ld_alpha: float = Field(default=0.5, ge=0, le=1)
    """`ld_dpo` only: weight of the tokens of a pair's longer side that lie beyond the shorter side's length. 1 is DPO,
    0 leaves them out; usual values are 0.1 to 0.9."""
    desirable_weight: float = Field(default=1.0, ge=0)
    """`kto` only: weight of the rows with a thumb up, usually 0.5 to 2. If one kind of thumb is much rarer, raise its
    weight: the paper has (weight up × rows up) / (weight down × rows down) between 1 and 1.5."""
    undesirable_weight: float = Field(default=1.0, ge=0)
    """`kto` only: weight of the rows with a thumb down, usually 0.5 to 2."""

    sft_rows_fraction: float = Field(default=0.0, ge=0, le=1)
    """SFT rows that each step shows beside its preferences, as a fraction of them, against forgetting; usual values are
    0.05 to 0.1, and 0 shows none. They are the training rows of `sft.dataset`. Each weighs as much as a preference; its
    loss is the mean negative log-likelihood of its tokens."""
    weighted: bool = False
    """Multiplies each pair's loss by its weight, which `preferences.weight_column` names (WPO; Zhou et al. 2024). A
    step's mean is over its rows: weights are not normalised, so a mean weight of 2 doubles the loss."""
    target_margin: Literal["column", "scores"] | None = None
    """Reward-aware DPO (RPO; Adler et al. 2024): how much better a pair's chosen side is, which the reward margin is
    brought to and no further. `column`: what `preferences.margin_column` names. `scores`: the difference of the two
    sides' scores. null: plain DPO, which has no target."""
    margin_scale: float = Field(default=1.0, gt=0)
    """η: the reward margin aimed at is η times `target_margin`; 1 in the paper, for a reward model's scores."""

    @model_validator(mode="after")
    def _scale_of_a_target(self) -> Dpo:
        if self.margin_scale != 1.0 and self.target_margin is None:
            raise ValueError("margin_scale counts only with target_margin")
        return self

    stop: Stop | None = None
    """Conditions that end training early. Without them the same conditions are notes in the report."""
    keep_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps from one candidate to the next; the last step is one too. The candidate with the best `keep_by`
    becomes the policy, and its step is recorded. null takes the last step's."""
    keep_by: Literal["loss", "accuracy", "margin"] = "loss"
    """The measurement of held-out pairs by which `keep_steps` chooses. The pairs choose, so they flatter the policy a
    little; suites do not."""

    @model_validator(mode="after")
    def _looks_and_candidates(self) -> Dpo:
        if self.keep_by != "loss" and self.keep_steps is None:
            raise ValueError("keep_by counts only with keep_steps")
        asked = {
            "keep_steps": self.keep_steps,
            "stop.kl": None if self.stop is None else self.stop.kl,
            "lora.quantise": self.quantise,
        }
        for name in (name for name, value in asked.items() if self.sharded and value is not None):
            raise ValueError(f"{name} needs the whole model in one process: leave out {name} or sharded")
        return self

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_its_method(cls, given: Any) -> Any:
        """What is not given is the method's own default, where that is another than the section's."""
        if not isinstance(given, dict):
            return given
        method = cls.spelling.method(given.get(cls.spelling.key), given.get("length_normalised"))
        return given if method is None else method.defaults() | given

    @model_validator(mode="after")
    def _settings_of_its_method(self) -> Dpo:
        every = {name for method in METHODS.values() for name in method.settings()}
        for name in sorted(every - self.spelling.settings(self.loss)):
            if self._given(name):
                takers = [taker for taker in self.spelling.names if name in self.spelling.settings(taker)]
                raise ValueError(f"{name} counts only with {self.spelling.called(takers)}")
        if wrong := self.method.wrong():
            raise ValueError(f"{self.called} {wrong}")
        return self

    def _given(self, name: str) -> bool:
        """Whether a person gave a setting. Requests hold all of them, so what holds its default counts as not given."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    @property
    def called(self) -> str:
        """What the recipe calls the method, such as `loss: sigmoid`."""
        return self.spelling.called([self.loss])

    @property
    def method(self) -> Method:
        """The method with its own settings."""
        method = self.spelling.method(self.loss, self.length_normalised)
        assert method is not None, "a section with an unknown method is refused"
        return method.of(self)

    def as_dpo(self) -> Dpo:
        """The settings as requests hold them."""
        return self

    def outside_practice(self) -> list[str]:
        """One sentence for each setting that lies outside of what practice supports for the method; none is refused."""
        notes = self.method.outside_practice(self, self.called)
        return [f"{self.spelling.section}.{note}" for note in notes]


class Optimise(Dpo):
    """How the policy is trained on the preferences: the method with its settings, and the optimiser."""

    spelling: ClassVar[Spelling] = METHOD

    loss: Annotated[str, AfterValidator(METHOD.known), WithJsonSchema(METHOD.schema)] = Field(
        default="dpo", alias="method"
    )
    """The method; docs/methods.md compares them. `dpo`: Rafailov et al. 2023. `step_dpo`: `dpo` of pairs that share
    their first steps (Lai et al. 2024). `hinge`: SLiC-HF (Zhao et al. 2023). `ipo`: Azar et al. 2023. `cdpo` (Mitchell
    2023) and `robust_dpo` (Chowdhury et al. 2024): for data with some wrong labels. `apo_zero`, `apo_down`: APO, for
    chosen completions better or worse than the model's own (D'Oosterlinck et al. 2024). `ld_dpo`: DPO in which the
    excess of the longer side counts less (Liu et al. 2024). `kto`: for completions with a thumb up or down; a pair
    counts as two of them (Ethayarajh et al. 2024). `simpo` (Meng et al. 2024) and `cpo` (Xu et al. 2024) take no
    reference, and their graph has no reference log-probs. `orpo` (Hong et al. 2024) takes none either, and trains from
    the base model: its recipe has no `sft`. `grpo` (Shao et al. 2024) is on-policy: it trains on answers that the
    policy samples, and needs the section `on_policy`."""
    beta: float = Field(default=0.1, gt=0)
    """β: a larger value keeps the policy nearer to the reference. Usual values are 0.01 to 1, and 1 to 10 with `dpo`
    and `length_normalised`, whose log-ratios are per token. `ipo` aims at a margin of 1 / (2β). Usual values
    with `kto` are 0.01 to 0.5. With `simpo`, whose default is 2, it scales rewards per token; usual values are 2 to 10.
    `orpo` refuses it."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed fraction of pairs whose chosen and rejected sides are swapped, below 0.5. `cdpo` and `robust_dpo` need
    it; the other methods refuse it."""
    length_normalised: bool = False
    """Whether margins are of mean log-ratios per token. `dpo` and `step_dpo`: false by default; true is Tülu 3's
    `dpo_norm` (Lambert et al. 2024). `ipo`: true by default, as in TRL; false takes sums, as the paper writes it."""

    def _given(self, name: str) -> bool:
        return name in self.model_fields_set

    def as_dpo(self) -> Dpo:
        """The same training under the older spelling, which requests hold; equal settings have equal keys."""
        every = {name for method in METHODS.values() for name in method.settings()}
        shared = Dpo.model_fields.keys() - {"loss"} - (every - self.method.settings())
        return Dpo(loss=self.method.name, **{name: getattr(self, name) for name in sorted(shared)})
