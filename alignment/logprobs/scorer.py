"""Log-probabilities of completions under a causal language model.

Sequences go through the model longest first, padded on the right to a token budget; with causal attention
no token sees the padding after it. The decoder runs over whole sequences, the head only over the positions
that predict a completion token, in blocks, so that memory beyond weights and activations stays bounded
whatever the vocabulary. Log-softmax is taken in float32 (float64 for a float64 model), summed in float64.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignment.errors import BadInput
from alignment.logprobs.batches import longest_first, next_batch
from alignment.logprobs.head import Head, matching_head
from alignment.tokens import TokenSequence

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

LOGITS_AT_ONCE = 1 << 26
"""Logits held at a time; 256 MiB in float32."""
SECONDS_BETWEEN_REPORTS = 10.0


@dataclass(frozen=True)
class Scored:
    """One scored sequence: where it stood in the list, and its completion's log-probability in nats."""

    index: int
    logp: float


def score(model: PreTrainedModel, sequences: Sequence[TokenSequence], batch_tokens: int) -> Iterator[list[Scored]]:
    """Scores every sequence exactly once; yields batch by batch, in no order a caller may count on.

    `batch_tokens` is the padded tokens of one forward pass. When memory runs out the budget is halved and
    scoring goes on; it raises the device's own error only if a single sequence does not fit.
    """
    import torch

    _require_vocabulary(model, sequences)
    lengths = [len(sequence) for sequence in sequences]
    progress = _Progress(sum(lengths))
    order = longest_first(lengths)
    head: Head | None = None
    if order:
        shortest = order.pop()
        with torch.inference_mode():
            logp, head = _score_and_find_head(model, sequences[shortest])
        yield [Scored(shortest, logp)]
        progress.done(lengths[shortest])
    start = 0
    while start < len(order):
        batch = next_batch(order, lengths, start, batch_tokens)
        rows = [sequences[index] for index in batch]
        try:
            with torch.inference_mode():
                sums = score_batch(model, rows, head)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            sums = None
        if sums is None:  # outside of the handler, whose traceback keeps the failed pass in memory
            batch_tokens = lengths[batch[0]] * (len(batch) // 2)
            logger.warning("out of memory with %d sequences: going on with %d tokens a pass", len(batch), batch_tokens)
            free_memory()
            continue
        yield [Scored(index, logp) for index, logp in zip(batch, sums, strict=True)]
        start += len(batch)
        progress.done(sum(lengths[index] for index in batch))


def score_batch(model: PreTrainedModel, rows: Sequence[TokenSequence], head: Head | None) -> list[float]:
    """Completion log-probabilities (nat) of one padded batch; without a head through the model's own forward."""
    ids = padded(rows, model.device)
    if head is None:
        return _by_own_forward(model, rows, ids)
    decoder = _decoder(model)
    hidden = decoder(input_ids=ids, **_without_cache(decoder)).last_hidden_state
    where = _predicting(rows)
    picked = hidden[where[0].to(hidden.device), where[1].to(hidden.device)]
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return _sums(_logps(head, picked, _targets(rows), vocabulary), rows)


def padded(rows: Sequence[TokenSequence], device: torch.device) -> torch.Tensor:
    """Input ids [rows, longest], padded on the right.

    No mask goes with them. Under causal attention nothing sees what stands to its right, and a mask would
    rule out the fastest attention kernels and give padding rows that attend to nothing.
    """
    import torch

    ids = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row.prompt_ids + row.completion_ids)
    return ids.to(device)


def _score_and_find_head(model: PreTrainedModel, sequence: TokenSequence) -> tuple[float, Head | None]:
    """Scores one sequence by the model's own forward pass and tells which head gives the same logits."""
    seen: list[torch.Tensor] = []
    hook = _decoder(model).register_forward_hook(lambda _module, _inputs, output: seen.append(output[0]))
    try:
        logits = model(input_ids=padded([sequence], model.device), **_without_cache(model)).logits[0]
    finally:
        hook.remove()
    first = len(sequence.prompt_ids) - 1
    wanted = logits[first:-1]
    head = matching_head(model, seen[0][0, first:-1], wanted) if seen and seen[0].shape[1] == len(sequence) else None
    logps = _logps(_own, wanted, _targets([sequence]), wanted.shape[-1])
    return _sums(logps, [sequence])[0], head


def _by_own_forward(model: PreTrainedModel, rows: Sequence[TokenSequence], ids: torch.Tensor) -> list[float]:
    """Row by row, so that no more than one row's logits are held."""
    sums = []
    for place, row in enumerate(rows):
        keep = len(row.completion_ids) + 1
        extra: dict[str, Any] = {"logits_to_keep": keep} if _takes(model, "logits_to_keep") else {}
        own = ids[place : place + 1, : len(row)]
        logits = model(input_ids=own, **_without_cache(model), **extra).logits[0, -keep:-1]
        sums += _sums(_logps(_own, logits, _targets([row]), logits.shape[-1]), [row])
    return sums


def _logps(head: Head, hidden: torch.Tensor, targets: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """[positions] float64 on the CPU: log-probability of each target given the hidden state that predicts it."""
    import torch

    block = max(1, LOGITS_AT_ONCE // vocabulary)
    done: list[torch.Tensor] = []
    for states, wanted in zip(torch.split(hidden, block), torch.split(targets.to(hidden.device), block), strict=True):
        logits = head(states)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        done.append(logits.gather(1, wanted[:, None])[:, 0].double() - logits.logsumexp(-1).double())
    return torch.cat(done).cpu()


def _own(logits: torch.Tensor) -> torch.Tensor:
    """The head of logits that are already there."""
    return logits


def _sums(logps: torch.Tensor, rows: Sequence[TokenSequence]) -> list[float]:
    """Sum of each row's positions, whatever rows it shared a batch with."""
    import torch

    return [float(part.sum()) for part in torch.split(logps, [len(row.completion_ids) for row in rows])]


def _targets(rows: Sequence[TokenSequence]) -> torch.Tensor:
    import torch

    return torch.tensor([token for row in rows for token in row.completion_ids])


def _predicting(rows: Sequence[TokenSequence]) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and position of every hidden state that predicts a completion token."""
    import torch

    places = [torch.full((len(row.completion_ids),), place) for place, row in enumerate(rows)]
    positions = [torch.arange(len(row.prompt_ids) - 1, len(row) - 1) for row in rows]
    return torch.cat(places), torch.cat(positions)


def _decoder(model: PreTrainedModel) -> Any:
    """The model without its head."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    return model.base_model if decoder is None or decoder is model else decoder


def _takes(module: Any, argument: str) -> bool:
    return argument in inspect.signature(module.forward).parameters


def _without_cache(module: Any) -> dict[str, bool]:
    return {"use_cache": False} if _takes(module, "use_cache") else {}


def _require_vocabulary(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max((max(*s.prompt_ids, *s.completion_ids) for s in sequences), default=0)
    if largest >= rows:
        raise BadInput(f"the tokenizer gives id {largest}, and the model has embeddings for {rows} only")


def free_memory() -> None:
    """Gives memory that nothing holds any more back to the device."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Progress:
    """Says now and then how fast scoring goes and how long it still takes."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.seen = tokens, 0
        self.began = self.said = time.monotonic()

    def done(self, tokens: int) -> None:
        self.seen += tokens
        now = time.monotonic()
        if now - self.said >= SECONDS_BETWEEN_REPORTS:
            self.said = now
            rate = self.seen / (now - self.began)
            left = (self.tokens - self.seen) / rate
            logger.info("scored %d of %d tokens, %.0f tokens/s, %.0f s left", self.seen, self.tokens, rate, left)
