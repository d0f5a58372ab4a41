"""Pairs as one padded batch, in TRL's layout: all chosen sequences first, then all rejected ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

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
