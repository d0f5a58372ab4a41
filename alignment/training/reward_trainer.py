"""TRL's reward trainer on our token ids: the Bradley-Terry loss of a pair, −log σ(r(chosen) − r(rejected))."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from alignment.data.manifest import SPLIT_FILE, read_manifest
from alignment.data.rows import ROWS_FILE, PreferenceRow, iter_rows
from alignment.data.tokens import Dropped, Tokenization
from alignment.recipe.forward import Lora
from alignment.stages.stage import Context
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


class PairTrainer(OurTrainer, RewardTrainer):  # type: ignore[misc]
    """The reward trainer in a fixed order, with checkpoints that are whole or not there."""


def reward_trainer(
    model: Any, pairs: Sequence[RewardPair], tokenizer: Any, arguments: dict[str, Any], lora: Lora | None
) -> PairTrainer:
    """The trainer of a run; `arguments` from `trainer_arguments`. The head is trained whole beside an adapter."""
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
    rows = [{"chosen_ids": pair.chosen, "rejected_ids": pair.rejected} for pair in pairs]
    return PairTrainer(
        model=model,
        args=RewardConfig(**arguments, max_length=None, eval_strategy="no", dataset_num_proc=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=peft,
    )
