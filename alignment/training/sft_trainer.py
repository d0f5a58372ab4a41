"""TRL's SFT trainer on our token ids, with an exact held-out loss and the best weights kept aside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from alignment.tokens import TokenSequence
from alignment.training.best import BestWeights, looks, patience_is_over
from alignment.training.models import TrainedModel
from alignment.training.trainer import OurTrainer

IGNORED = -100
"""Label of a token that is not trained on."""


class CompletionTrainer(OurTrainer, SFTTrainer):  # type: ignore[misc]
    """SFT on `input_ids` and `labels`, which are -100 outside the completion."""

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Held-out loss: nats a completion token, over all held-out tokens, whatever batch they are in."""
        training = self.model.training
        self.model.eval()
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
        self.model.train(training)
        sums = torch.stack([nats, tokens]).to(self.args.device)
        nats, tokens = self.accelerator.reduce(sums, reduction="sum").cpu()
        metrics = {"eval_loss": float(nats / tokens)}
        self.log(metrics)
        trainer: Any = self
        trainer.control = self.callback_handler.on_evaluate(self.args, self.state, trainer.control, metrics)
        return metrics


class Patience(TrainerCallback):  # type: ignore[misc]
    """Keeps the weights of the lowest held-out loss, and stops after `patience` looks without a lower one."""

    def __init__(self, patience: int, best: BestWeights, trainer: CompletionTrainer) -> None:
        self.patience, self.best, self.trainer = patience, best, trainer
        self.resumable: int | None = None
        """The best step that the last trainer checkpoint knows."""
        self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.resumable = looks(state.log_history).best_step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.resumable = looks(state.log_history).best_step

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
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


def sft_trainer(
    trained: TrainedModel,
    train: Sequence[TokenSequence],
    held_out: Sequence[TokenSequence],
    tokenizer: Any,
    arguments: dict[str, Any],
    eval_steps: int,
) -> CompletionTrainer:
    """The trainer of a run; `arguments` from `trainer_arguments`. Looks at the held-out loss where there is any."""
    looking = {"eval_strategy": "steps", "eval_steps": eval_steps} if held_out else {"eval_strategy": "no"}
    config = SFTConfig(
        **arguments,
        **looking,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return CompletionTrainer(
        model=trained.model,
        args=config,
        train_dataset=Dataset.from_list([features(sequence) for sequence in train]),
        eval_dataset=Dataset.from_list([features(sequence) for sequence in held_out]) if held_out else None,
        processing_class=tokenizer,
        peft_config=trained.lora_config(),
    )
