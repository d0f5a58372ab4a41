"""Log-probabilities of completions under a causal language model.

Sequences go through the model longest first, in passes of a token budget, by the forward pass that training takes
(`alignment.models.runner`): packed behind their prompts, which are computed once, in every precision.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.data.tokens import TokenSequence
from alignment.errors import BadInput
from alignment.models.forward import counted, vocabulary
from alignment.models.packing import longest_first
from alignment.models.runner import Runner
from alignment.models.sharding import sharding_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Says now and then how fast scoring goes and how long it still takes.

SECONDS_BETWEEN_REPORTS = 10.0


class Progress:
    """Tokens done out of `tokens`, prompts counted with every completion."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.seen = tokens, 0
        self.began = self.said = time.monotonic()

    def done(self, tokens: int) -> None:
        """Adds tokens that were scored, and says how far it is once every few seconds."""
        self.seen += tokens
        now = time.monotonic()
        if now - self.said >= SECONDS_BETWEEN_REPORTS:
            self.said = now
            rate = self.seen / (now - self.began)
            left = (self.tokens - self.seen) / rate
            logger.info("scored %d of %d tokens, %.0f tokens/s, %.0f s left", self.seen, self.tokens, rate, left)


@dataclass(frozen=True)
class Scored:
    """One scored sequence: where it stood in the list, and its completion's log-probability in nats.

    `firsts` are those of its first tokens, for the counts that were asked for.
    """

    index: int
    logp: float
    firsts: tuple[float, ...] = ()


@dataclass(frozen=True)
class ScoredPass:
    """One forward pass: `tokens` went through the model in `positions` places, the rest of which is padding."""

    scored: list[Scored]
    tokens: int
    positions: int


def score(
    model: PreTrainedModel,
    sequences: Sequence[TokenSequence],
    batch_tokens: int,
    firsts: Sequence[Sequence[int]] | None = None,
) -> Iterator[ScoredPass]:
    """Scores every sequence exactly once; yields pass by pass, in no order a caller may count on.

    `firsts` has for each sequence the counts of first tokens whose sums are wanted beside that of the whole.
    `batch_tokens` is the tokens of one forward pass. When memory runs out the budget is halved and
    scoring goes on; it raises the device's own error only if a single sequence does not fit. Where passes are filled
    to that size (`Runner.fill`), it is part of the values' key: then it raises `BadInput` that names the smaller size.
    So it does for a sharded model, of which every rank calls this at the same time, with sequences of its own or none:
    with such as the model's runner has been shown, by the same ones on every rank before.
    """
    import torch

    _require_vocabulary(model, sequences)
    lengths = [len(sequence) for sequence in sequences]
    progress = Progress(sum(lengths))
    order = longest_first(lengths)
    if not order and sharding_of(model) is None:
        return
    # What a sharded model puts together in inference mode could take part in no later gradient.
    without_gradient = torch.inference_mode if sharding_of(model) is None else torch.no_grad
    with without_gradient():
        runner = Runner.of(model, sequences[order[-1]]) if order else Runner.known(model)
    batch_tokens = runner.budget(batch_tokens)
    missing = 0
    if runner.sharding is not None:
        missing = runner.missing(sum(1 for _ in runner.passes(sequences, order, batch_tokens)))
    done: set[int] = set()
    while len(done) < len(sequences):
        for groups in runner.passes(sequences, [index for index in order if index not in done], batch_tokens):
            indices = [index for group in groups for index in group]
            try:
                with without_gradient():
                    rows = [[sequences[index] for index in group] for group in groups]
                    tokens = runner.token_logps(rows, runner.fill(batch_tokens))
            except torch.OutOfMemoryError as error:
                if runner.fill(batch_tokens) or runner.sharding is not None:  # other ranks go on with this size
                    what = f"a pass of {batch_tokens} tokens does not fit into memory: say {batch_tokens // 2}"
                    raise BadInput(what, field="reference.batch_tokens") from error
                if len(indices) == 1:
                    raise
                tokens, size = None, sum(lengths[index] for index in indices)
                runner.most = batch_tokens = max(1, min(batch_tokens, size) // 2)
                logger.warning("out of memory with %d tokens: going on with %d a pass", size, batch_tokens)
            if tokens is None:  # outside of the handler, whose traceback keeps the failed pass in memory
                free_memory()
                break
            scored = list(_sums(tokens, sequences, indices, firsts))
            yield ScoredPass(scored, *runner.size(sequences, groups))
            done.update(indices)
            progress.done(sum(lengths[index] for index in indices))
    with without_gradient():
        for _ in range(missing):
            runner.empty()
    runner.release()


def _sums(
    tokens: torch.Tensor,
    sequences: Sequence[TokenSequence],
    indices: Sequence[int],
    firsts: Sequence[Sequence[int]] | None,
) -> Iterator[Scored]:
    """The sums of a pass's log-probs, one a completion token, over each sequence and over its first tokens."""
    import torch

    rows = [sequences[index] for index in indices]
    parts = torch.split(counted(tokens, rows), [len(row.completion_ids) for row in rows])
    for index, part in zip(indices, parts, strict=True):
        begun = tuple(float(part[:count].sum()) for count in firsts[index]) if firsts else ()
        yield Scored(index, float(part.sum()), begun)


def logps(
    model: PreTrainedModel,
    sequences: Sequence[TokenSequence],
    batch_tokens: int,
    wholes: Sequence[int] | None = None,
) -> list[float]:
    """Log-probs in nats, in the order of the sequences.

    `wholes` has for each sequence the place of the one whose forward gives it: its own, or that of one it begins.
    """
    found = [math.nan] * len(sequences)
    wholes = range(len(sequences)) if wholes is None else wholes
    begun: dict[int, list[int]] = {place: [] for place, whole in enumerate(wholes) if place == whole}
    for place, whole in enumerate(wholes):
        if place != whole:
            begun[whole].append(place)
    places = list(begun)
    firsts = [[len(sequences[place].completion_ids) for place in begun[whole]] for whole in places]
    for done in score(model, [sequences[place] for place in places], batch_tokens, firsts):
        for one in done.scored:
            found[places[one.index]] = one.logp
            for place, logp in zip(begun[places[one.index]], one.firsts, strict=True):
                found[place] = logp
    return found


def require_finite(logp: float, row: str, model: Path, precision: str) -> None:
    """Raises `BadInput` for a log-prob that is no number of nats: it could be neither kept nor compared."""
    if not math.isfinite(logp):
        raise BadInput(
            f"row {row}: its log-prob under this model in {precision} is {logp}, which is not finite; the model is"
            " damaged, or gives one of the row's tokens no chance at all",
            file=str(model),
        )


def _require_vocabulary(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> None:
    rows = vocabulary(model)
    largest = max((max(*s.prompt_ids, *s.completion_ids) for s in sequences), default=0)
    if largest >= rows:
        raise BadInput(f"the tokenizer gives id {largest}, and the model has embeddings for {rows} only")


def free_memory() -> None:
    """Gives memory that nothing holds any more back to the device, that of a trainer with its cycles too."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
