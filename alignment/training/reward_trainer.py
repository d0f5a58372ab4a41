"""TRL's reward trainer on our token ids: the Bradley-Terry loss of a pair, −log σ(r(chosen) − r(rejected))."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from alignment.data.manifest import SPLIT_FILE, read_manifest
from alignment.data.rows import ROWS_FILE, PreferenceRow, iter_rows
from alignment.data.tokens import Dropped, Tokenization
from alignment.recipe.forward import Lora
from alignment.stages.stage import Context
from alignment.training.models import adapting
from alignment.training.trainer import OurTrainer

AT_ONCE = 1024


class RewardPair:
    """A pair's two sequences of token ids, and the ids of its row and prompt."""

    def __init__(self, row: PreferenceRow, chosen: Sequence[int], rejected: Sequence[int], prompt_id: str) -> None:
        self.row_id, self.prompt_id = row.row_id, prompt_id
        self.chosen, self.rejected = list(chosen), list(rejected)


def reward_pairs(
    folder: Path, context: Context, tokens: Tokenization
) -> tuple[dict[str, list[RewardPair]], dict[str, int]]:
    """The pairs of a manifest by its split, `train` and `held_out`, and why others were dropped."""
    from alignment.data.rows import content_id

    splits = pq.read_table(folder / SPLIT_FILE, columns=["row_id", "split"])
    split_of = {
        row_id: split
        for row_id, split in zip(splits["row_id"].to_pylist(), splits["split"].to_pylist(), strict=True)
        if split != "dropped"
    }
    found: dict[str, list[RewardPair]] = {"train": [], "held_out": []}
    dropped: Counter[str] = Counter()
    for shard in read_manifest(folder).shards:
        for rows in _batched(iter_rows(context.fetch(shard.shard) / ROWS_FILE)):
            kept = [row for row in rows if row.row_id in split_of]
            for row, sides in zip(kept, tokens.pairs(kept), strict=True):  # type: ignore[arg-type]
                split = split_of.pop(row.row_id, None)  # a row that several shards hold counts once
                if isinstance(sides, Dropped):
                    dropped[sides.reason] += 1
                elif split is not None:
                    chosen, rejected = (side.prompt_ids + side.completion_ids for side in sides)
                    found[split].append(RewardPair(row, chosen, rejected, content_id({"prompt": row.prompt})))
    return found, dict(sorted(dropped.items()))


def _batched(rows: Iterator[PreferenceRow]) -> Iterator[list[PreferenceRow]]:
    batch: list[PreferenceRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


EMPTY: dict[str, Any] = {"chosen_ids": [0], "rejected_ids": [0], "counts": False}
"""A row that fills up the steps of several ranks, and counts for nothing."""


class WithCounts(DataCollatorForPreference):  # type: ignore[misc]
    """TRL's batch, and `counts` [rows]: which of the rows are pairs."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch of these rows."""
        batch: dict[str, Any] = super().torch_call(examples)
        return batch | {"counts": torch.tensor([example["counts"] for example in examples])}


class PairTrainer(OurTrainer, RewardTrainer):  # type: ignore[misc]
    """The reward trainer in a fixed order, with checkpoints that are whole or not there.

    Each pair of an optimiser step weighs the same, whatever its micro batch or rank: TRL's mean over a micro batch
    would give the pairs of a smaller one more. `rows` are those of all steps, without the empty ones of `order`; the
    last row of the training set is empty.
    """

    loss_is_scaled_for_ga = True
    """`compute_loss` says what a pair weighs in the whole step."""
    rows: int
    batch_size: int

    @property
    def empty_row(self) -> int:
        """Its index, which fills up the steps of several ranks."""
        return len(self.train_dataset) - 1

    def _rows_in(self, inputs: dict[str, Any]) -> int:
        return int(inputs["counts"].sum())

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        pairs = inputs["counts"].repeat(2)
        super()._track_num_input_tokens({**inputs, "attention_mask": inputs["attention_mask"][pairs]})

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """This micro batch's part of the step's mean loss, times the ranks, over which gradients are averaged.

        TRL's own also keeps accuracy and margins of the batch; they are measured on held-out pairs here.
        """
        counts = inputs.pop("counts")
        step_rows = min(self.batch_size, self.rows - self.state.global_step * self.batch_size)
        chosen, rejected = model(**inputs, use_cache=False).logits.squeeze(-1).chunk(2)
        losses = -torch.nn.functional.logsigmoid(chosen - rejected)
        loss: torch.Tensor = losses[counts].sum() * (self.args.world_size / step_rows)
        return loss


def reward_trainer(
    model: Any, pairs: Sequence[RewardPair], tokenizer: Any, arguments: dict[str, Any], lora: Lora | None
) -> PairTrainer:
    """The trainer of a run; `arguments` from `trainer_arguments`. The head is trained whole beside an adapter.

    Set its `order`, `rows` and `batch_size` before `train`.
    """
    peft = None
    if lora is not None:
        from peft import LoraConfig

        peft = LoraConfig(
            task_type="SEQ_CLS",
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            modules_to_save=["score"],
        )
    rows = [{"chosen_ids": pair.chosen, "rejected_ids": pair.rejected, "counts": True} for pair in pairs]
    with adapting(lora):
        trainer = PairTrainer(
            model=model,
            args=RewardConfig(**arguments, max_length=None, eval_strategy="no", dataset_num_proc=None),
            train_dataset=Dataset.from_list([*rows, EMPTY]),
            processing_class=tokenizer,
            peft_config=peft,
        )
    trainer.data_collator = WithCounts(pad_token_id=trainer.processing_class.pad_token_id)
    return trainer
