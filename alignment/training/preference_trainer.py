"""TRL's DPO trainer on our token ids and our cached reference log-probs: no reference model, no second pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from alignment.errors import BadInput
from alignment.methods import method_of
from alignment.recipe import Dpo
from alignment.training.agreement import FLOAT32_LOSS, Disagreement
from alignment.training.models import TrainedModel, without_dropout
from alignment.training.pairs import PolicyPair
from alignment.training.trainer import OurTrainer

if TYPE_CHECKING:
    import torch


# Pairs as one padded batch, in TRL's layout: all chosen sequences first, then all rejected ones.

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class PairCollator:
    """From P rows to `input_ids`, `attention_mask` and `completion_mask` (2P × longest, right-padded) and
    `ref_chosen_logps`, `ref_rejected_logps` (P, float32 nats).

    A row has `<side>_prompt_ids`, `<side>_ids` and `ref_<side>_logps`: each side brings its own prompt,
    because where a prompt ends depends on the completion that follows it.
    """

    pad_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        import torch

        sequences = [(row[f"{side}_prompt_ids"], row[f"{side}_ids"]) for side in SIDES for row in rows]
        batch = self.sequences(sequences)
        for side in SIDES:
            values = [row[f"ref_{side}_logps"] for row in rows]
            batch[f"ref_{side}_logps"] = torch.tensor(values, dtype=torch.float32)
        return batch

    def sequences(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, torch.Tensor]:
        """(prompt ids, completion ids) of each sequence as a padded batch."""
        import torch

        longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
        shape = (len(sequences), longest)
        ids = torch.full(shape, self.pad_id, dtype=torch.long)
        attended, completion_mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for place, (prompt, completion) in enumerate(sequences):
            whole = [*prompt, *completion]
            ids[place, : len(whole)] = torch.tensor(whole)
            attended[place, : len(whole)] = 1
            completion_mask[place, len(prompt) : len(whole)] = 1
        return {"input_ids": ids, "attention_mask": attended, "completion_mask": completion_mask}


class NoReference(torch.nn.Module):
    """Stands where TRL would load a reference model: holds nothing, and refuses to be run."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("the reference is cached and never run")


class FirstLoss(TrainerCallback):  # type: ignore[misc]
    """Ends a run whose first step's own loss is not what theory says of a policy that is its reference."""

    def __init__(self, expected: float) -> None:
        self.expected = expected

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        loss = (logs or {}).get("loss")
        if state.global_step == 1 and loss is not None and not abs(loss - self.expected) <= FLOAT32_LOSS:
            raise Disagreement(f"the first step's loss is {loss:.6f}, theory says {self.expected:.6f}")


class CachedReferenceTrainer(OurTrainer, DPOTrainer):  # type: ignore[misc]
    """DPO from `PairCollator` batches; every row weighs the same in a step, whatever micro batch it is in."""

    rows_a_batch_row = 2
    _rows_a_micro_batch = 1.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ref_model = None
        self.precompute_ref_logps = True

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        samples, items = super().get_batch_samples(*args, **kwargs)
        rows = torch.tensor(float(sum(len(batch["input_ids"]) for batch in samples) // 2), device=self.args.device)
        self._rows_a_micro_batch = float(self.accelerator.gather(rows).mean()) / max(1, len(samples))
        return samples, items

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self.model.training or return_outputs:
            return loss
        return loss * (len(inputs["input_ids"]) // 2 / self._rows_a_micro_batch)

    @torch.no_grad()
    def sequence_logps(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        """Log-prob of each completion given its prompt under the policy now, in nats, through the training forward.

        All sequences are one padded batch.
        """
        batch = self._prepare_inputs(self.data_collator.sequences(sequences))
        labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        training = self.model.training
        self.model.eval()
        outputs = self.model(**batch, labels=labels, use_cache=False, fused_lm_head=True)
        self.model.train(training)
        return [float(value) for value in outputs.log_probs.double().sum(dim=1)]


def dpo_trainer(
    trained: TrainedModel, pairs: Sequence[PolicyPair], tokenizer: Any, arguments: dict[str, Any], settings: Dpo
) -> CachedReferenceTrainer:
    """The trainer of a run; `arguments` from `trainer_arguments`, `settings` a recipe's `Dpo`."""
    without_dropout(trained.model)  # before LoRA, whose own dropout changes nothing at step 1 and stays
    loss_type, loss_weights = trl_loss(settings)
    config = DPOConfig(
        **arguments,
        beta=settings.beta,
        label_smoothing=settings.label_smoothing,
        loss_type=loss_type,
        loss_weights=loss_weights,
        max_length=None,
        disable_dropout=False,
    )
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    lora = trained.lora_config()
    try:
        trainer = CachedReferenceTrainer(
            model=trained.model,
            ref_model=NoReference(trained.model.config) if lora is None else None,
            args=config,
            data_collator=PairCollator(int(pad_id)),
            train_dataset=Dataset.from_list([pair.features() for pair in pairs]),
            processing_class=tokenizer,
            peft_config=lora,
        )
    except ValueError as error:
        if lora is not None and ("target" in str(error).lower() or "lm_head" in str(error)):
            raise BadInput(str(error).splitlines()[0], field="lora.target_modules") from error
        raise
    expected = method_of(settings).first_loss()
    if settings.precision == "float32" and not settings.sft_weight and expected is not None:
        trainer.add_callback(FirstLoss(expected))
    return trainer


def trl_loss(settings: Dpo) -> tuple[list[str], list[float]]:
    """TRL's `loss_type` and `loss_weights`."""
    if settings.sft_weight:
        return [settings.loss, "sft"], [1.0, settings.sft_weight]
    return [settings.loss], [1.0]
