"""What our trainers add to TRL's: a fixed order, safe checkpoints, float32 masters, progress lines, and quiet."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback

from alignment.training import resume
from alignment.training.masters import MasterAdamW

log = logging.getLogger(__name__)


class FixedOrder(Sampler[int]):
    """Yields the given indices in the given order."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


class Progress(TrainerCallback):  # type: ignore[misc]
    """One line a log record: step of how many, and the losses."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        for key, name in (("loss", "loss"), ("eval_loss", "held-out loss")):
            if key in logs:
                log.info("step %d/%d, %s %.4f", state.global_step, state.max_steps, name, float(logs[key]))


class OurTrainer:
    """Mixed in before a TRL trainer. Set `order` (indices into the training set) before `train`."""

    order: Sequence[int]
    rows_forwarded = 0
    """Training rows this process has put through the model since it started."""
    rows_a_batch_row = 1
    """Sequences of a batch that make one row: 2 for pairs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)  # type: ignore[attr-defined]
        self.add_callback(Progress())  # type: ignore[attr-defined]

    def _send_telemetry(self) -> None:
        """Nothing is sent anywhere."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """A resumable checkpoint needs none."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> FixedOrder:
        return FixedOrder(self.order)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self.rows_forwarded += len(inputs["input_ids"]) // self.rows_a_batch_row
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc,no-any-return]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Keeps float32 masters where the trained weights are bfloat16."""
        trainer: Any = self
        fresh = trainer.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)  # type: ignore[misc]
        groups = [group for group in optimizer.param_groups if group["params"]]
        if fresh and any(weight.dtype == torch.bfloat16 for group in groups for weight in group["params"]):
            kept = ("lr", "betas", "eps", "fused")
            optimizer = MasterAdamW(groups, **{name: optimizer.defaults[name] for name in kept})
            trainer.optimizer = optimizer
        return optimizer

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trainer: Any = self
        checkpoint = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
        if trainer.is_world_process_zero():
            resume.unmark(checkpoint)
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            resume.mark_complete(checkpoint)
            resume.keep_only(checkpoint)
        trainer.accelerator.wait_for_everyone()
