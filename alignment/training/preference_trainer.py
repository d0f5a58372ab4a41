"""TRL's DPO trainer outside, our packed step inside: our token ids, our cached reference log-probs, no second pass.

TRL and Transformers keep what users know of them: configuration, callbacks, logging, PEFT, checkpoints and resume. The
step itself is `alignment.training.packed_step`; a batch is the places of one whole optimiser step's rows, the same on
every rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from alignment.data.tokens import TokenSequence
from alignment.logprobs.scorer import logps
from alignment.methods import method_of
from alignment.models.attention import shared_prompts
from alignment.models.recompute import recompute_cheap_parts
from alignment.models.runner import Runner, products_are_tf32
from alignment.models.sharding import shard, whole, without_gradient
from alignment.recipe.training import Dpo
from alignment.training import packed_step
from alignment.training.agreement import FLOAT32_LOSS, Disagreement
from alignment.training.models import TrainedModel, adapting
from alignment.training.pairs import PolicyCompletion, PolicyRow, reference_logps
from alignment.training.router import RouterLoss
from alignment.training.sft_rows import LIKELIHOOD, Likelihood, rows_of_step
from alignment.training.trainer import MasterAdamW, OurTrainer


class NoReference(torch.nn.Module):
    """Stands where TRL would load a reference model: holds nothing, and refuses to be run."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, *_: Any, **__: Any) -> None:
        """Raises, as nothing may run it."""
        raise RuntimeError("the reference is cached and never run")


class FirstLoss(TrainerCallback):  # type: ignore[misc]
    """Ends a run whose first step's own loss is not what theory says of a policy that is its reference."""

    def __init__(self, trainer: CachedReferenceTrainer) -> None:
        self.trainer = trainer

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Raises `Disagreement` where the first step's loss is not what theory gives."""
        loss = (logs or {}).get("loss")
        if state.global_step != 1 or loss is None:
            return
        expected = self.trainer.first_loss
        if expected is not None and not abs(loss - expected) <= FLOAT32_LOSS:
            raise Disagreement(f"the first step's loss is {loss:.6f}, theory says {expected:.6f}")


class CachedReferenceTrainer(OurTrainer, DPOTrainer):  # type: ignore[misc]
    """Preference training whose step takes exactly `settings.batch_size` rows of `pairs`, all of the same weight.

    Set `order` (indices into `pairs`) before `train`, and train inside `attending`.
    """

    pairs: Sequence[PolicyRow]
    sft_rows: Sequence[PolicyCompletion] = ()
    """Demonstrations that each step shows beside its preferences, if the settings say so."""
    sft_order: Any = ()
    """Their indices, one step after the other."""
    router: RouterLoss | None = None
    settings: Dpo
    pass_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ref_model = None
        self.precompute_ref_logps = True
        # Ranks sum their gradients themselves, or the model's own sharding does: nothing else wraps it.
        self.accelerator.prepare_model = lambda model, **_: model

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Attention by shared prompts, for steps and what recomputes activations in them, if the model takes it."""
        if self._runner().shared is False:
            yield
            return
        with shared_prompts(self.causal_lm):
            yield

    @property
    def first_loss(self) -> float | None:
        """What theory says of the first step's loss; None where it says nothing."""
        step = [self.pairs[int(place)] for place in self.order[: self.settings.batch_size]]
        method = method_of(self.settings)
        return method.first_loss(reference_logps(method, step))

    def _runner(self) -> Runner:
        return Runner.of(self.causal_lm, next(iter(self.pairs[0].sequences.values())))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The places of each step's rows in `pairs`; every rank has them all."""
        return DataLoader(self.order, batch_size=self.settings.batch_size, collate_fn=lambda places: {"rows": places})

    def training_step(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """Forward and backward of this rank's share of a whole optimiser step; the step's mean loss over all ranks."""
        model.train()
        step = [self.pairs[place] for place in inputs["rows"]]
        method = method_of(self.settings)
        share = packed_step.share_of(method, step, self.args.process_index, self.args.world_size)
        constants = packed_step.constants_of(method, step, share, self.logps)
        rows = [step[place] for place in share]
        runner = self._runner()
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        owners = self._gradients()
        numbers = packed_step.backward(
            runner,
            method,
            rows,
            len(step),
            self.pass_tokens,
            [*trained, *owners],
            constants,
            self._beside(len(step)),
            self.router,
        )
        packed_step.sum_over_ranks(owners)
        numbers = numbers.over_ranks()
        self.rows_forwarded += len(rows)
        self.state.num_input_tokens_seen += int(numbers.tokens)
        self._record(numbers, method.shown(constants))
        loss = torch.tensor(numbers.loss / len(step), dtype=torch.float32, device=self.args.device)
        self._step_loss = self._step_loss + loss
        return loss

    def _beside(self, step_rows: int) -> tuple[Likelihood, list[PolicyCompletion]] | None:
        """This rank's share of the SFT rows in the step that is trained now, of `step_rows` preferences."""
        if not self.sft_rows:
            return None
        fraction = self.settings.sft_rows_fraction
        first = self.state.global_step * rows_of_step(self.settings.batch_size, fraction)
        places = self.sft_order[first : first + rows_of_step(step_rows, fraction)]
        shown = [self.sft_rows[int(place)] for place in places]
        share = packed_step.share_of(LIKELIHOOD, shown, self.args.process_index, self.args.world_size)
        return LIKELIHOOD, [shown[place] for place in share]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: the packed step counts its own."""
        return 0

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """The step counts them itself."""

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        """The norm over all gradients before they are scaled down to `max_grad_norm`."""
        return whole(torch.nn.utils.clip_grad_norm_(self._gradients(), self.args.max_grad_norm))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser, which sums gradients of several passes in float32."""
        optimizer = super().create_optimizer(model)
        if isinstance(optimizer, MasterAdamW) and not optimizer.accumulates:
            optimizer.accumulate_in_float32()
        return optimizer

    def _gradients(self) -> list[torch.Tensor]:
        """The tensors whose `grad` is the step's: float32 masters, or the trained weights themselves."""
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)  # as the accelerator wraps it
        return [weight for group in optimizer.param_groups for weight in group["params"]]

    def _record(self, numbers: packed_step.StepNumbers, constants: dict[str, float]) -> None:
        """TRL's names. A side that no row of the step has (unpaired rows may all be of one label) is left out."""
        values = {"rewards/accuracies": numbers.accuracy / numbers.rows, **constants}
        for side in ("chosen", "rejected"):
            if count := getattr(numbers, side):
                values[f"rewards/{side}"] = getattr(numbers, f"{side}_reward") / count
                values[f"logps/{side}"] = getattr(numbers, f"{side}_logp") / count
        if numbers.chosen == numbers.rejected:
            values["rewards/margins"] = (numbers.chosen_reward - numbers.rejected_reward) / numbers.chosen
        elif numbers.chosen and numbers.rejected:
            values["rewards/margins"] = values["rewards/chosen"] - values["rewards/rejected"]
        if self.router is not None:
            values["router_loss"] = numbers.router_loss / (numbers.rows + numbers.beside)
        if numbers.beside:
            values["sft_loss"] = numbers.beside_loss / numbers.beside
        metrics: defaultdict[str, list[float]] = self._metrics["train"]
        for name, value in values.items():
            metrics[name].append(value)

    def logps(self, sequences: Sequence[TokenSequence], wholes: Sequence[int] | None = None) -> list[float]:
        """Log-prob of each completion given its prompt under the policy now, in nats, by the pass that trains it.

        `wholes` as `alignment.logprobs.scorer.logps` has it.
        """
        with self._evaluating():
            return logps(self.causal_lm, sequences, self.pass_tokens, wholes)

    def logps_alone(self, sequences: Sequence[TokenSequence]) -> list[float]:
        """The same by a pass for each that shares nothing and rounds otherwise; outside of `attending`."""
        with self._evaluating(), without_gradient(self.causal_lm):
            return logps_alone(self.causal_lm, sequences)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)


def logps_alone(model: Any, sequences: Sequence[TokenSequence]) -> list[float]:
    """Log-prob of each completion by a pass of its own that shares nothing."""
    done = [Runner.of(model, sequence).alone(sequence) for sequence in sequences]
    Runner.of(model, sequences[0]).release()
    return done


def preference_trainer(
    trained: TrainedModel,
    pairs: Sequence[PolicyRow],
    tokenizer: Any,
    arguments: dict[str, Any],
    settings: Dpo,
    pass_tokens: int,
    *,
    is_reference: bool = True,
) -> CachedReferenceTrainer:
    """The trainer of a run; `arguments` from `trainer_arguments`, `settings` a recipe's section, `pass_tokens` tokens
    of one pass, `is_reference` whether the policy starts as its reference. Raises `BadInput` for LoRA targets that the
    model does not have."""
    config = DPOConfig(
        **arguments | {"per_device_train_batch_size": settings.batch_size, "gradient_accumulation_steps": 1},
        beta=settings.beta,
        max_length=None,
        disable_dropout=False,
        router_aux_loss_coef=0.0,
    )
    lora = trained.lora_config()
    with adapting(settings.lora):
        trainer = CachedReferenceTrainer(
            model=trained.model,
            ref_model=NoReference(trained.model.config) if lora is None else None,
            args=config,
            data_collator=list,
            train_dataset=Dataset.from_dict({"row": [0]}),  # the step reads `pairs`; TRL looks at one row
            processing_class=tokenizer,
            peft_config=lora,
            sharded=trained.sharded,
        )
    if trained.sharded:
        shard(trainer.causal_lm, settings.precision, trainer.args.device, read=trained.read)
    if settings.gradient_checkpointing == "selective":
        recompute_cheap_parts(trainer.causal_lm)
    trainer.pairs, trainer.settings, trainer.pass_tokens = pairs, settings, pass_tokens
    if settings.router_aux_loss_coef:
        trainer.router = RouterLoss(trainer.causal_lm, settings.router_aux_loss_coef)
    exact = settings.precision == "float32" and not products_are_tf32()
    # what is logged has no other terms in it
    plain = not (settings.sft_weight or settings.weighted or settings.sft_rows_fraction)
    if exact and plain and is_reference and method_of(settings).needs_reference:
        trainer.add_callback(FirstLoss(trainer))
    return trainer
