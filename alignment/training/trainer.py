"""What our trainers add to TRL's: a fixed order, safe checkpoints, float32 masters, progress lines, and quiet."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback

from alignment.errors import BadInput
from alignment.models.sharding import local
from alignment.progress import CURVES
from alignment.training import resume, shards
from alignment.training.arguments import history
from alignment.training.models import require_finite

# AdamW for bfloat16 weights, with float32 masters that hold what bfloat16 rounds away.
#
# Forward and backward run on the bfloat16 weights alone, as the reference scorer's forward pass does.
# Costs 16 bytes a trained parameter: weight 2, gradient 2, master 4, moments 8; 18 where gradients are kept in float32.


class MasterAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019) over float32 copies of the given parameters.

    `param_groups` hold the copies; each step takes the parameters' gradients and writes the rounded result
    back. The masters are part of the state, so a resumed run goes on from unrounded weights.

    After `accumulate_in_float32` a parameter's gradient moves to its master as soon as a backward pass has made it:
    sums over passes are not rounded to bfloat16.
    """

    accumulates = False

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        self.pairs: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        copies = []
        for group in groups:
            masters = [torch.nn.Parameter(original(weight)) for weight in group["params"]]
            self.pairs += list(zip(group["params"], masters, strict=True))
            copies.append({"params": masters, "weight_decay": group["weight_decay"]})
        super().__init__(copies, **settings)

    def accumulate_in_float32(self) -> None:
        """From now on gradients of several passes are summed into the masters' own, in float32."""
        self.accumulates = True
        masters = dict(self.pairs)

        def move(weight: torch.Tensor) -> None:
            master, gradient = masters[weight], weight.grad  # type: ignore[index]
            assert gradient is not None
            if master.grad is None:
                master.grad = gradient.float()
            else:
                master.grad += gradient
            weight.grad = None

        for weight, _ in self.pairs:
            weight.register_post_accumulate_grad_hook(move)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Steps the masters, and rounds them into the weights."""
        for weight, master in self.pairs if not self.accumulates else ():
            master.grad = None if weight.grad is None else weight.grad.float()
        super().step(closure)
        for weight, master in self.pairs:
            master.grad = None
            weight.copy_(master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of weights and masters."""
        for weight, master in self.pairs:
            weight.grad = master.grad = None

    def state_dict(self) -> dict[str, Any]:
        """AdamW's, with the masters."""
        return {**super().state_dict(), "masters": [master.detach() for _, master in self.pairs]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`; weights become their rounded masters."""
        state = dict(state_dict)
        for (weight, master), saved in zip(self.pairs, state.pop("masters"), strict=True):
            master.copy_(saved)
            weight.copy_(master)
        super().load_state_dict(state)


def original(weight: torch.nn.Parameter) -> torch.Tensor:
    """The float32 tensor a weight was rounded from, where its loader left it as `original`; else a copy."""
    finer: torch.Tensor | None = weight.__dict__.pop("original", None)
    return weight.detach().float().clone() if finer is None else finer.to(weight.device)


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
    """One line a log record: step of how many, the loss, and of preferences margin and accuracy. Its numbers go to the
    file `CURVES` too."""

    SAID: ClassVar[dict[str, str]] = {"rewards/margins": "margin", "rewards/accuracies": "accuracy"}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Says how far the training is, and how it goes."""
        if not state.is_world_process_zero or not logs:
            return
        for key, name in (("loss", "loss"), ("eval_loss", "held-out loss")):
            if key in logs:
                said = "".join(f", {what} {float(logs[one]):.3g}" for one, what in self.SAID.items() if one in logs)
                log.info("step %d/%d, %s %.4f%s", state.global_step, state.max_steps, name, float(logs[key]), said)
        path = Path(args.output_dir) / CURVES.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(record) + "\n" for record in history([{"step": state.global_step, **logs}]))


class OurTrainer:
    """Mixed in before a TRL trainer. Set `order` (indices into the training set, a list or array) before `train`.

    A step whose loss or gradient is not finite ends the run before it changes a weight: `BadInput` names it.
    """

    order: Any
    rows_forwarded = 0
    """Training rows this process has put through the model since it started."""
    _step_loss: torch.Tensor | float = 0.0
    """Sum of this step's micro batches so far."""

    def __init__(self, *args: Any, sharded: bool = False, **kwargs: Any) -> None:
        self.sharded = sharded
        super().__init__(*args, **kwargs)
        model: Any = self.model  # type: ignore[attr-defined]
        if getattr(model, "is_loaded_in_4bit", False):  # TRL rounds adapters beside four bits to bfloat16
            for weight in model.parameters():
                weight.data = weight.data.float() if weight.requires_grad else weight.data
        if sharded:  # the model sums gradients over the ranks itself: nothing else wraps it
            self.accelerator.prepare_model = lambda model, **_: model  # type: ignore[attr-defined]
        self.remove_callback(PrinterCallback)  # type: ignore[attr-defined]
        self.add_callback(Progress())  # type: ignore[attr-defined]

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        """A model that one device may not hold has no weights until it is sharded."""
        if not self.sharded:
            super()._move_model_to_device(model, device)  # type: ignore[misc]

    @property
    def causal_lm(self) -> Any:
        """The language model itself, with its adapters in place."""
        trainer: Any = self
        return trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model

    def _send_telemetry(self) -> None:
        """Nothing is sent anywhere."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """A resumable checkpoint needs none."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> FixedOrder:
        return FixedOrder(self.order)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """The step of the trainer beside it; also counts rows and sums the loss."""
        self.rows_forwarded += self._rows_in(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        self._step_loss = self._step_loss + loss.detach()
        return loss

    def _rows_in(self, inputs: dict[str, Any]) -> int:
        return len(inputs["input_ids"])

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Called once a step, when all ranks' gradients are in and before any weight changes."""
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
        loss, self._step_loss = float(self._step_loss), 0.0
        if not (math.isfinite(loss) and math.isfinite(float(norm))):
            self._stop(loss, float(norm))
        return norm

    def _stop(self, loss: float, norm: float) -> None:
        trainer: Any = self
        step, rate = trainer.state.global_step + 1, trainer.args.learning_rate
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        if step == 1:
            raise BadInput(f"{what} in step 1, before any weight changed: look at its rows, or train in float32")
        kept = resume.last_complete(Path(trainer.args.output_dir))
        left = "no trainer checkpoint was written before" if kept is None else f"{kept.name} is kept, from before it"
        raise BadInput(
            f"training diverged: {what} in step {step} of {trainer.state.max_steps}; lower the learning rate"
            f" ({rate:g}); {left}",
            field="learning_rate",
        )

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
        require_finite(trainer.model, trainer.state.global_step)  # a run resumed from it could never recover
        if trainer.is_world_process_zero():
            resume.unmark(checkpoint)
            shutil.rmtree(checkpoint, ignore_errors=True)  # what another number of ranks left in the middle of it
        trainer.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            resume.mark_complete(checkpoint)
            resume.keep_only(checkpoint)
        trainer.accelerator.wait_for_everyone()

    # A trainer checkpoint is safetensors and JSON (`alignment.training.shards`), whatever number of ranks reads it.

    @property
    def cut(self) -> bool:
        """Whether this process has a part of each trained weight only."""
        trainer: Any = self
        return any(local(weight) is not weight for weight in trainer.model.parameters() if weight.requires_grad)

    @property
    def _parts(self) -> int:
        """Files of a checkpoint's weights: each rank has one of a model that is cut, the first one of another."""
        trainer: Any = self
        return int(trainer.args.world_size) if self.cut else 1

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves what a resumed run needs of weights and moments."""
        trainer: Any = self
        assert output_dir is not None
        folder, rank = Path(output_dir), trainer.args.process_index
        folder.mkdir(parents=True, exist_ok=True)
        if rank < self._parts:
            shards.save_tensors(folder, trainer.model, trainer.optimizer, rank, self._parts)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        trainer: Any = self
        if trainer.is_world_process_zero():
            shards.save_numbers(Path(output_dir), trainer.model, trainer.optimizer, trainer.lr_scheduler, self._parts)

    def _save_rng_state(self, output_dir: str) -> None:
        trainer: Any = self
        shards.save_random(Path(output_dir), trainer.args.process_index, trainer.args.world_size)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: the weights come with the optimiser's state."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        trainer: Any = self
        if checkpoint is not None:
            shards.load(Path(checkpoint), trainer.model, trainer.optimizer, trainer.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        trainer: Any = self
        if checkpoint is not None:
            shards.load_random(Path(checkpoint), trainer.args.process_index, trainer.args.world_size)
