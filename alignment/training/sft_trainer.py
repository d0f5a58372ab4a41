"""TRL's SFT trainer on our token ids, with an exact held-out loss and the best weights kept aside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from alignment.data.tokens import TokenSequence
from alignment.errors import BadInput
from alignment.models.recompute import recompute_cheap_parts
from alignment.models.sharding import local, shard, sharding_of, whole
from alignment.training.models import TrainedModel, adapting, master_weights
from alignment.training.packed_step import sum_over_ranks
from alignment.training.router import RouterLoss
from alignment.training.trainer import OurTrainer

# The best weights of a run so far: found in its log, kept aside without the optimiser's state.


@dataclass(frozen=True)
class Looks:
    """Looks at the held-out loss: the best one's step and loss (the first of equals), and how many came after it."""

    best_step: int | None
    best_loss: float
    since: int


def looks(log_history: Iterable[Mapping[str, Any]]) -> Looks:
    """What the trainer's log says; one look a step (a resumed run may log one twice)."""
    seen = {int(entry["step"]): float(entry["eval_loss"]) for entry in log_history if "eval_loss" in entry}
    best_step, best_loss, since = None, float("inf"), 0
    for step in sorted(seen):
        if seen[step] < best_loss:
            best_step, best_loss, since = step, seen[step], 0
        else:
            since += 1
    return Looks(best_step, best_loss, since)


def patience_is_over(seen: Looks, patience: int) -> bool:
    """Whether as many looks as the recipe allows brought nothing better."""
    return seen.since >= patience


class BestWeights:
    """`<folder>/step-N.safetensors`: what was trained, at the precision it is trained in.

    The best that the last trainer checkpoint knows is kept beside a newer one, for a run resumed from there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """The file of a step's weights."""
        return self.folder / f"step-{step}.safetensors"

    def save(self, step: int, model: Any, optimizer: Any) -> None:
        """Keeps what the model has learnt at this step."""
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".step-{step}"
        save_file({name: value.contiguous() for name, value in trained_values(model, optimizer).items()}, partial)
        partial.replace(self.path(step))

    def restore(self, step: int, model: Any, optimizer: Any) -> None:
        """Puts the weights of a step back into the model (and the optimiser's masters)."""
        from safetensors.torch import load_file

        saved = load_file(self.path(step))
        masters = {id(weight): master for weight, master in master_weights(optimizer)}
        for name, weight in model.named_parameters():
            if name in saved:
                weight.data.copy_(saved[name])
                if id(weight) in masters:
                    masters[id(weight)].data.copy_(saved[name])

    def forget_all_but(self, steps: set[int]) -> None:
        """Removes the weights of all other steps."""
        for path in self.folder.glob("step-*.safetensors"):
            if path not in {self.path(step) for step in steps}:
                path.unlink()


def trained_values(model: Any, optimizer: Any) -> dict[str, Any]:
    """Parameter name → its trained tensor: the float32 master where there is one."""
    masters = {id(weight): master for weight, master in master_weights(optimizer)}
    return {
        name: masters.get(id(weight), weight).detach()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


IGNORED = -100
"""Label of a token that is not trained on."""


class CompletionTrainer(OurTrainer, SFTTrainer):  # type: ignore[misc]
    """SFT on `input_ids` and `labels`, which are -100 outside the completion.

    The last row of the training set is empty: it has no label, adds nothing to a loss, and is not counted.
    """

    @property
    def empty_row(self) -> int:
        """Its index, which fills up the steps of several ranks."""
        return len(self.train_dataset) - 1

    def _rows_in(self, inputs: dict[str, Any]) -> int:
        return int((inputs["labels"] != IGNORED).any(1).sum())

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        rows = (inputs["labels"] != IGNORED).any(1)
        super()._track_num_input_tokens({**inputs, "attention_mask": inputs["attention_mask"][rows]})

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Held-out loss: nats a completion token, over all held-out tokens, whatever batch they are in."""
        training, sharding = self.model.training, sharding_of(self.causal_lm)
        self.model.eval()
        # ranks may have held-out batches of unequal number
        with nullcontext() if sharding is None else sharding.uncounted(self.causal_lm):
            nats, tokens = self._held_out_sums()
        self.model.train(training)
        sums = torch.stack([nats, tokens]).to(self.args.device)
        nats, tokens = self.accelerator.reduce(sums, reduction="sum").cpu()
        metrics = {"eval_loss": float(nats / tokens)}
        if not math.isfinite(metrics["eval_loss"]):
            step = self.state.global_step
            raise BadInput(
                f"training diverged: the held-out loss is {metrics['eval_loss']} after step {step}; lower the learning"
                f" rate ({self.args.learning_rate:g})",
                field="learning_rate",
            )
        self.log(metrics)
        trainer: Any = self
        trainer.control = self.callback_handler.on_evaluate(self.args, self.state, trainer.control, metrics)
        return metrics

    def _held_out_sums(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Nats and tokens of this rank's held-out rows."""
        size, world = self.args.per_device_eval_batch_size, self.accelerator.num_processes
        rows = list(range(self.accelerator.process_index, len(self.eval_dataset), world))
        nats = torch.zeros((), dtype=torch.float64)
        tokens = torch.zeros((), dtype=torch.float64)
        for start in range(0, len(rows), size):
            batch = self._prepare_inputs(
                self.data_collator([self.eval_dataset[index] for index in rows[start : start + size]])
            )
            outputs = self.model(**batch, use_cache=False, fused_lm_head=True)
            nats -= outputs.log_probs.double().sum().cpu()
            tokens += outputs.label_mask.sum().cpu()
        return nats, tokens

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        """The norm over all gradients before they are scaled down to `max_grad_norm`; of a sharded model they are
        averaged over the ranks before, as those of copies are."""
        if sharding_of(self.causal_lm) is None:
            norm: torch.Tensor = super()._clip_grad_norm(model)
            return norm
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        sum_over_ranks(trained)
        for weight in trained:
            if weight.grad is not None and local(weight) is weight:  # an adapter's
                weight.grad /= self.accelerator.num_processes
        return whole(torch.nn.utils.clip_grad_norm_(trained, self.args.max_grad_norm))


class Patience(TrainerCallback):  # type: ignore[misc]
    """Keeps the weights of the lowest held-out loss, and stops after `patience` looks without a lower one."""

    def __init__(self, patience: int, best: BestWeights, trainer: CompletionTrainer) -> None:
        self.patience, self.best, self.trainer = patience, best, trainer
        self.resumable: int | None = None
        """The best step that the last trainer checkpoint knows."""
        self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remembers the best step of the run that is resumed."""
        self.resumable = looks(state.log_history).best_step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remembers the best step that a resumed run would know of."""
        self.resumable = looks(state.log_history).best_step

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keeps the best weights, and stops where patience is over."""
        seen = looks(state.log_history)
        if seen.best_step == state.global_step and state.is_world_process_zero:
            self.best.save(state.global_step, self.trainer.model, self.trainer.optimizer)
            self.best.forget_all_but({step for step in (self.resumable, seen.best_step) if step is not None})
        if patience_is_over(seen, self.patience):
            self.stopped = control.should_training_stop = True
            control.should_save = False  # a run resumed from here would train on


def features(sequence: TokenSequence) -> dict[str, list[int]]:
    """The columns TRL's collator reads."""
    prompt, completion = list(sequence.prompt_ids), list(sequence.completion_ids)
    return {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}


EMPTY: dict[str, list[int]] = {"input_ids": [0], "labels": [IGNORED]}
"""A row that counts for nothing."""


def sft_trainer(
    trained: TrainedModel,
    train: Sequence[TokenSequence],
    held_out: Sequence[TokenSequence],
    tokenizer: Any,
    arguments: dict[str, Any],
    eval_steps: int,
) -> CompletionTrainer:
    """The trainer of a run; `arguments` from `trainer_arguments`. Looks at the held-out loss where there is any."""
    if coefficient := trained.settings.router_aux_loss_coef:
        RouterLoss(trained.model, coefficient)  # refuses a model without routers, of which TRL only warns
    looking = {"eval_strategy": "steps", "eval_steps": eval_steps} if held_out else {"eval_strategy": "no"}
    config = SFTConfig(
        **arguments,
        **looking,
        max_length=None,
        packing=False,
        router_aux_loss_coef=trained.settings.router_aux_loss_coef,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    with adapting(trained.settings.lora):
        trainer = CompletionTrainer(
            model=trained.model,
            args=config,
            train_dataset=Dataset.from_list([*map(features, train), EMPTY]),
            eval_dataset=Dataset.from_list([features(sequence) for sequence in held_out]) if held_out else None,
            processing_class=tokenizer,
            peft_config=trained.lora_config(),
            sharded=trained.sharded,
        )
    if trained.sharded:
        sharding = shard(
            trainer.causal_lm, trained.settings.precision, trainer.args.device, read=trained.read, mean=True
        )
        sharding.patch(trainer.causal_lm)
    if trained.settings.gradient_checkpointing == "selective":
        recompute_cheap_parts(trainer.causal_lm)
    return trainer
