"""Log-probabilities of completions under a causal language model.

Sequences go through the model longest first, in passes of a token budget: packed behind their prompts,
which are computed once, where the model allows it, else padded on the right. The head runs only over the
positions that predict a completion token.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from alignment.data.tokens import TokenSequence
from alignment.errors import BadInput
from alignment.models.attention import CannotShare
from alignment.models.forward import Head, find_head, packed_logps, padded_logps, vocabulary
from alignment.models.packing import Group, batches, forwarded, longest_first, pack, rounded

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Which way a model's sequences go, found by comparing both on a real pass, once a model.
#
# Sharing a prompt is right for attention that is causal, within a window or not, and for layers that treat
# tokens alone. Capped attention, a state that runs over the sequence, or anything else is refused by name or
# shows as a difference between a packed pass and its sequences one at a time; such a model goes in padded batches.

logger = logging.getLogger(__name__)

FULL_PRECISION = 4  # bytes

SAME = {"float64": 1e-5, "float32": 1e-5, "bfloat16": 2e-2, "float16": 5e-3}
"""Largest difference, relative to the larger of the log-probability and one nat a token."""


@dataclass
class Way:
    """How one model is run. `shared` is None until a pass has shown it, for sequences of `shown` tokens at most.

    `most` is the largest pass that fitted into memory after a larger one did not.
    """

    head: Head | None
    shared: bool | None = None
    shown: int = 0
    most: int | None = None

    def unproven(self, groups: Sequence[Sequence[TokenSequence]]) -> bool:
        """Whether it has to be shown that these can share: what holds for short sequences need not for longer."""
        longest = max(len(row) for rows in groups for row in rows)
        return self.shared is None or (self.shared and longest > self.shown)


_ways: WeakKeyDictionary[Any, Way] = WeakKeyDictionary()


def way_of(model: PreTrainedModel, sequence: TokenSequence, share_in_half: bool = False) -> Way:
    """What is known of a model; at first only its head, found on `sequence`.

    In 16-bit precisions a packed pass rounds otherwise than the trainer's padded one, by more than the same
    pass batched against alone: enough for the check that reference and policy agree to stop a sound run. There
    sequences go padded, as in training, unless the caller asks to share.
    """
    if model not in _ways:
        way = _ways[model] = Way(find_head(model, sequence))
        if way.head is None:
            way.shared = False
        elif model.dtype.itemsize < FULL_PRECISION and not share_in_half:
            _go_padded(model, way, f"{str(model.dtype).removeprefix('torch.')} is scored as it is trained")
    return _ways[model]


def try_sharing(model: PreTrainedModel, groups: Sequence[Sequence[TokenSequence]], way: Way) -> list[float] | None:
    """A packed pass, its longest and last sequence compared with the same alone; None where the model cannot share.

    A sequence with a pass to itself would look right on any model, so its twin goes behind it. The question
    stays open when all that was read is the end of one prompt.
    """
    import torch

    assert way.head is not None
    rows = [row for group in groups for row in group]
    packed = [[rows[0], rows[0]]] if len(rows) == 1 else groups
    try:
        found = packed_logps(model, packed, way.head)
    except torch.OutOfMemoryError:
        raise
    except (CannotShare, TypeError, ValueError, RuntimeError) as error:  # takes no positions, hands on no keyword, …
        _go_padded(model, way, str(error) or type(error).__name__)
        return None
    tolerance = SAME[str(model.dtype).removeprefix("torch.")]
    longest = max(range(len(rows)), key=lambda place: len(rows[place]))
    for place, row in ((longest, rows[longest]), (-1, rows[-1])):
        alone = padded_logps(model, [row], way.head)[0]
        apart = abs(found[place] - alone) / max(abs(alone), float(len(row.completion_ids)))
        if not apart <= tolerance:
            _go_padded(model, way, f"log-probs differ by {apart:.1e}, relatively")
            return None
    if len(packed) > 1 or len(rows[-1].completion_ids) > 1:
        if way.shared is None:
            logger.info("prompts are shared between their completions on %s", type(model).__name__)
        way.shared, way.shown = True, max(way.shown, len(rows[longest]))
    return found[: len(rows)]


def _go_padded(model: PreTrainedModel, way: Way, why: str) -> None:
    way.shared = False
    logger.info("prompts are not shared on %s, sequences go in padded batches: %s", type(model).__name__, why)


# Says now and then how fast scoring goes and how long it still takes.

SECONDS_BETWEEN_REPORTS = 10.0


class Progress:
    """Tokens done out of `tokens`, prompts counted with every completion."""

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


def require_finite(logp: float, row: str, model: Path, precision: str) -> None:
    """Raises `BadInput` for a log-prob that is no number of nats: it could be neither kept nor compared."""
    if not math.isfinite(logp):
        raise BadInput(
            f"row {row}: its log-prob under this model in {precision} is {logp}, which is not finite; the model is"
            " damaged, or gives one of the row's tokens no chance at all",
            file=str(model),
        )


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
