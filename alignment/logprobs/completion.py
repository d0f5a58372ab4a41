"""From hidden states at the positions that predict completion tokens to each completion's log-probability.

Logits are made in blocks, so that memory stays bounded whatever the vocabulary. Log-softmax is taken in
float32 (float64 for a float64 model), summed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignment.logprobs.head import Head
from alignment.logprobs.packing import ROUND, rounded
from alignment.tokens import TokenSequence

if TYPE_CHECKING:
    import torch

LOGITS_AT_ONCE = 1 << 26
"""Logits held at a time; 256 MiB in float32."""


def completion_logps(head: Head, hidden: torch.Tensor, rows: Sequence[TokenSequence], vocabulary: int) -> list[float]:
    """Nats a row, given the hidden states [completion tokens of all rows, hidden] that predict its tokens.

    Blocks are multiples of `ROUND` rows, the last one filled up: a row's bits do not depend on its neighbours.
    """
    import torch

    targets = torch.tensor([token for row in rows for token in row.completion_ids])
    missing = rounded(len(targets)) - len(targets)
    hidden = torch.nn.functional.pad(hidden, (0, 0, 0, missing))
    wanted = torch.nn.functional.pad(targets, (0, missing)).to(hidden.device)
    block = max(ROUND, LOGITS_AT_ONCE // vocabulary // ROUND * ROUND)
    done = []
    for states, ids in zip(torch.split(hidden, block), torch.split(wanted, block), strict=True):
        done.append(token_logps(head(states), ids))
    return row_sums(torch.cat(done)[: len(targets)].cpu(), rows)


def token_logps(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """[positions] float64: log-probability of each id under its row of `logits` [positions, vocabulary]."""
    import torch

    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.gather(1, ids[:, None])[:, 0].double() - logits.logsumexp(-1).double()


def row_sums(logps: torch.Tensor, rows: Sequence[TokenSequence]) -> list[float]:
    """Sum of each row's positions, whatever rows it shared a pass with."""
    import torch

    return [float(part.sum()) for part in torch.split(logps, [len(row.completion_ids) for row in rows])]
