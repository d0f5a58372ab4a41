"""Log-probabilities of completions under a causal language model.

Sequences go through the model longest first, in passes of a token budget: packed behind their prompts,
which are computed once, where the model allows it, else padded on the right. The head runs only over the
positions that predict a completion token.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignment.errors import BadInput
from alignment.logprobs.batches import batches, longest_first
from alignment.logprobs.forward import packed_logps, padded_logps, vocabulary
from alignment.logprobs.packing import Group, forwarded, pack, rounded
from alignment.logprobs.progress import Progress
from alignment.logprobs.ways import Way, try_sharing, way_of
from alignment.tokens import TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

CPU_TOKENS = 2048
"""Tokens of a pass on a CPU at most: larger ones leave its caches and gain nothing."""


@dataclass(frozen=True)
class Scored:
    """One scored sequence: where it stood in the list, and its completion's log-probability in nats."""

    index: int
    logp: float


@dataclass(frozen=True)
class ScoredPass:
    """One forward pass: `tokens` went through the model in `positions` places, the rest of which is padding."""

    scored: list[Scored]
    tokens: int
    positions: int


def score(
    model: PreTrainedModel, sequences: Sequence[TokenSequence], batch_tokens: int, *, share_in_half: bool = False
) -> Iterator[ScoredPass]:
    """Scores every sequence exactly once; yields pass by pass, in no order a caller may count on.

    Prompts are shared in full precision where the model allows it, in 16 bits only when asked (`ways.py`).

    `batch_tokens` is the tokens of one forward pass. When memory runs out the budget is halved and
    scoring goes on; it raises the device's own error only if a single sequence does not fit.
    """
    import torch

    _require_vocabulary(model, sequences)
    if model.device.type == "cpu":
        batch_tokens = min(batch_tokens, CPU_TOKENS)
    lengths = [len(sequence) for sequence in sequences]
    progress = Progress(sum(lengths))
    order = longest_first(lengths)
    if not order:
        return
    with torch.inference_mode():
        way = way_of(model, sequences[order[-1]], share_in_half)
    batch_tokens = min(batch_tokens, way.most or batch_tokens)
    done: set[int] = set()
    while len(done) < len(sequences):
        for groups in _passes(sequences, [index for index in order if index not in done], batch_tokens, way):
            indices = [index for group in groups for index in group]
            try:
                with torch.inference_mode():
                    sums = _logps(model, [[sequences[index] for index in group] for group in groups], way)
            except torch.OutOfMemoryError:
                if len(indices) == 1:
                    raise
                sums, tokens = None, sum(lengths[index] for index in indices)
                way.most = batch_tokens = max(1, min(batch_tokens, tokens) // 2)
                logger.warning("out of memory with %d tokens: going on with %d a pass", tokens, batch_tokens)
            if sums is None:  # outside of the handler, whose traceback keeps the failed pass in memory
                free_memory()
                break
            scored = [Scored(index, logp) for index, logp in zip(indices, sums, strict=True)]
            yield ScoredPass(scored, *_size(sequences, groups, way))
            done.update(indices)
            progress.done(sum(lengths[index] for index in indices))


def _passes(sequences: Sequence[TokenSequence], order: list[int], budget: int, way: Way) -> Iterator[list[Group]]:
    """Indices pass by pass, longest first: packed by prompt, or each sequence its own group in a padded batch."""
    if way.shared is not False:
        yield from pack(sequences, order, budget)
        return
    for batch in batches([len(sequence) for sequence in sequences], order, budget):
        yield [[index] for index in batch]


def _logps(model: PreTrainedModel, groups: Sequence[Sequence[TokenSequence]], way: Way) -> list[float] | None:
    """One pass, group by group; None when it has just turned out that this model takes other passes."""
    if way.unproven(groups):
        return try_sharing(model, groups, way)
    if way.shared and way.head is not None:
        return packed_logps(model, groups, way.head)
    return padded_logps(model, [row for group in groups for row in group], way.head)


def _size(sequences: Sequence[TokenSequence], groups: Sequence[Group], way: Way) -> tuple[int, int]:
    """Tokens of a pass, and the positions they were computed in."""
    if way.shared is not False:
        tokens = sum(forwarded(sequences, group) for group in groups)
        return tokens, rounded(tokens)
    lengths = [len(sequences[index]) for group in groups for index in group]
    padded = len(lengths) * max(lengths)
    return sum(lengths), sum(lengths) if way.head is None else padded  # without a head, row by row


def _require_vocabulary(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> None:
    rows = vocabulary(model)
    largest = max((max(*s.prompt_ids, *s.completion_ids) for s in sequences), default=0)
    if largest >= rows:
        raise BadInput(f"the tokenizer gives id {largest}, and the model has embeddings for {rows} only")


def free_memory() -> None:
    """Gives memory that nothing holds any more back to the device."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
