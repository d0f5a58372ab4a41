"""Demonstrations in the steps of preference training: a few SFT rows beside the preferences, against forgetting.

Each step of n rows also shows `rows_of_step(n)` rows of the data set that SFT was trained on, in an order that the
manifest's digest and the seed decide. Each weighs as much as a preference, and its loss is the mean over its tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.data.rows import TRAIN_FILE, content_id, iter_sft_rows
from alignment.data.tokens import Dropped, Tokenization, require_few_rewritten
from alignment.errors import BadInput
from alignment.methods import LabelledLogps, Method
from alignment.training.arguments import training_order
from alignment.training.demonstrations import tokenised
from alignment.training.pairs import COMPLETIONS, PolicyCompletion
from alignment.training.row_files import PairsFile, PolicyPairs

if TYPE_CHECKING:
    import torch

    from alignment.training.arguments import Order


@dataclass(frozen=True, kw_only=True)
class Likelihood(Method):
    """−log π(y|x) / |y|: the loss of a demonstration, a mean over its tokens."""

    name = "likelihood"
    data = "unpaired"
    logps = LabelledLogps
    sequences = ("completion",)
    needs_reference = False

    def loss(self, rows: LabelledLogps, constants: Any = None) -> torch.Tensor:
        """The NLL of the completion a token, a row."""
        return -rows.policy_completion / rows.completion_tokens

    def rewards(self, rows: LabelledLogps) -> tuple[torch.Tensor, torch.Tensor]:
        """The log-probs themselves."""
        return rows.sides


LIKELIHOOD = Likelihood()


def rows_of_step(rows: int, fraction: float) -> int:
    """SFT rows beside `rows` preferences of an optimiser step: that fraction of them, and one at least."""
    return max(1, round(fraction * rows))


def order_beside(
    sft_rows: PolicyPairs, digest: str, seed: int, trained: int, batch_size: int, fraction: float
) -> Order:
    """Indices into `sft_rows`, step after step, of a run over `trained` preferences; all are shown before one is
    shown again. `digest` is the manifest's."""
    wanted = math.ceil(trained / batch_size) * rows_of_step(batch_size, fraction)
    epochs = math.ceil(wanted / len(sft_rows))
    return training_order(sft_rows.row_ids, f"{digest} sft", seed, epochs, wanted)


def write_sft_rows_of(dataset: Path, tokens: Tokenization, path: Path) -> dict[str, int]:
    """Writes the training rows of an `sft_dataset` folder to an Arrow file of `COMPLETIONS`; returns {reason: dropped}.

    Raises `BadInput` where none is left, or the chat template writes too many prompts otherwise once an answer follows.
    """
    file, dropped = PairsFile(path, COMPLETIONS), Counter[str]()
    for row, sequence in tokenised(iter_sft_rows(dataset / TRAIN_FILE), tokens):
        if isinstance(sequence, Dropped):
            dropped[sequence.reason] += 1
            continue
        tokens.require_embeddings(sequence)
        whole = replace(sequence, uncounted=())  # the end of an answer is part of what SFT teaches
        prompt_id = content_id({"prompt": row.prompt})
        file.add(PolicyCompletion(row.row_id, whole, None, True, math.nan, math.nan, prompt_id))
    file.close()
    require_few_rewritten(dropped, file.rows, tokens.policy, "the checkpoint that training starts from, with SFT rows,")
    if not file.rows:
        why = ", ".join(f"{reason}: {count}" for reason, count in sorted(dropped.items()))
        raise BadInput(f"no row of sft.dataset left after the token policy ({why})", field="sft_rows_fraction")
    return dict(sorted(dropped.items()))
