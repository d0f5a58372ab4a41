"""One forward pass, for scorer and trainer alike: from sequences to the log-probability of each completion token.

Sequences go through packed behind their prompts, or, where a model allows nothing else, in a padded batch. The head
runs over the positions that predict a completion token alone, block by block, forward and backward.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from alignment.data.tokens import TokenSequence
from alignment.models.attention import NAME, shared_prompts
from alignment.models.packing import ROUND, lay_out
from alignment.models.rope import by_own_length

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


# From last hidden states to logits at just the positions that count, as the model's own head would.
#
# Most models apply a plain linear head; some scale or cap its result (Granite, Cohere, Gemma 2). Which it
# is gets found by comparing with the model's own forward pass on a real sequence; a model that none of
# these describe goes through its own forward pass always, which holds the logits of whole rows in memory.

Head = Callable[["torch.Tensor"], "torch.Tensor"]
"""[positions, hidden] → [positions, vocabulary]."""

logger = logging.getLogger(__name__)

SAME = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 1e-2}
"""Largest difference, relative to the largest logit, between one head and another way to compute it."""


def heads(model: PreTrainedModel) -> Iterator[tuple[str, Head]]:
    """The heads that the model's configuration suggests, by name; the first that agrees with it is right."""
    output: Any = model.get_output_embeddings()
    if output is None:
        return

    def linear(hidden: torch.Tensor) -> torch.Tensor:
        """Some models keep their hidden states in float32 whatever their weights are (Mamba)."""
        logits: torch.Tensor = output(hidden.to(output.weight.dtype))
        return logits

    config: Any = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        yield "soft-capped head", lambda hidden: cap * (linear(hidden) / cap).tanh()
    divisor = getattr(config, "logits_scaling", None)
    if divisor:
        yield "divided head", lambda hidden: linear(hidden) / divisor
    factor = getattr(config, "logit_scale", None)
    if factor:
        yield "multiplied head", lambda hidden: linear(hidden) * factor
    yield "plain head", linear


def matching_head(model: PreTrainedModel, hidden: torch.Tensor, logits: torch.Tensor) -> Head | None:
    """The head that turns `hidden` [positions, hidden] into the model's own `logits`; None where none does."""
    wanted = logits.double()
    tolerance = SAME[str(logits.dtype).removeprefix("torch.")] * max(1e-6, float(wanted.abs().max()))
    for name, head in heads(model):
        if float((head(hidden).double() - wanted).abs().max()) <= tolerance:
            logger.info("logits: %s on %s, completion positions only", name, type(model).__name__)
            return head
    logger.info("logits: the model's own forward pass; no known head agrees with %s", type(model).__name__)
    return None


# From hidden states at the positions that predict completion tokens to each completion's log-probability.
#
# Logits are made in blocks, so that memory stays bounded whatever the vocabulary. Log-softmax is taken in
# float32 (float64 for a float64 model), summed in float64.

LOGITS_AT_ONCE = 1 << 26
"""Logits held at a time; 256 MiB in float32."""


def head_logps(head: Head, states: torch.Tensor, rows: Sequence[TokenSequence], vocabulary: int) -> torch.Tensor:
    """[completion tokens] float64 on the CPU, in nats, from the `states` [completion tokens, hidden] that predict them.

    Blocks are multiples of `ROUND` positions, the last one filled up: a row's bits do not depend on its neighbours.
    Carries no gradient: `head_backward` gives it.
    """
    import torch

    with torch.no_grad():
        done = [token_logps(head(part), ids)[:count] for part, ids, count in _blocks(states.detach(), rows, vocabulary)]
    return torch.cat(done).cpu()


def head_backward(
    head: Head, states: torch.Tensor, rows: Sequence[TokenSequence], vocabulary: int, weights: torch.Tensor
) -> torch.Tensor:
    """The gradient [completion tokens, hidden] of Σ weights · log-probability in `states`; `weights` is one a token.

    The head's own weights get theirs on the way, block by block, so that no more than one block's logits are held.
    """
    import torch

    gradient = torch.empty_like(states)
    start = 0
    for block, ids, count in _blocks(states.detach(), rows, vocabulary):
        part = block.requires_grad_()
        logits = head(part)
        every = torch.nn.functional.pad(weights[start : start + count], (0, len(ids) - count)).to(logits.device)
        logits.backward(_gradient_in_logits(logits.detach(), ids, every))  # type: ignore[no-untyped-call]
        assert part.grad is not None
        gradient[start : start + count] = part.grad[:count]
        start += count
    return gradient


def _gradient_in_logits(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ weights · (logit of the id − log Σ exp logits), derived: weights · (1 at the id − softmax), as the logits are.

    Autograd would hold several blocks of float32 for it.
    """
    import torch

    wide = torch.promote_types(logits.dtype, torch.float32)
    weights = weights.to(wide)[:, None]
    return logits.softmax(-1, dtype=wide).mul_(-weights).scatter_add_(1, ids[:, None], weights).to(logits.dtype)


def _blocks(
    states: torch.Tensor, rows: Sequence[TokenSequence], vocabulary: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """(states, target ids, how many of them count) block by block."""
    import torch

    targets = torch.tensor([token for row in rows for token in row.completion_ids]).to(states.device)
    block = max(ROUND, LOGITS_AT_ONCE // vocabulary // ROUND * ROUND)
    # A GPU picks its 16-bit kernels by the number of rows: a last block as large as the others keeps bits equal there.
    whole = block if states.device.type != "cpu" and states.element_size() == 2 else ROUND
    for start in range(0, len(targets), block):
        part, ids = states[start : start + block], targets[start : start + block]
        count = len(ids)
        if missing := -count % whole:  # of the last block alone: no copy of all states
            part, ids = torch.nn.functional.pad(part, (0, 0, 0, missing)), torch.nn.functional.pad(ids, (0, missing))
        yield part, ids, count


def token_logps(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """[positions] float64: log-probability of each id under its row of `logits` [positions, vocabulary]."""
    import torch

    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.gather(1, ids[:, None])[:, 0].double() - logits.logsumexp(-1).double()


def counted(logps: torch.Tensor, rows: Sequence[TokenSequence]) -> torch.Tensor:
    """[completion tokens of all rows], with 0 for tokens that do not count: they add nothing and have no gradient."""
    import torch

    if not any(row.uncounted for row in rows):
        return logps
    starts = accumulate((len(row.completion_ids) for row in rows), initial=0)
    places = [start + place for start, row in zip(starts, rows, strict=False) for place in row.uncounted]
    return logps.index_fill(0, torch.tensor(places, device=logps.device), 0.0)


def row_sums(logps: torch.Tensor, rows: Sequence[TokenSequence]) -> torch.Tensor:
    """[rows]: the sum of each row's tokens [completion tokens of all rows], whatever rows it shared a pass with."""
    import torch

    logps = counted(logps, rows)
    return torch.stack([part.sum() for part in torch.split(logps, [len(row.completion_ids) for row in rows])])


def first_sums(logps: torch.Tensor, rows: Sequence[TokenSequence], counts: Sequence[int]) -> torch.Tensor:
    """[rows]: the sum of the first `counts` tokens of each row."""
    import torch

    parts = torch.split(counted(logps, rows), [len(row.completion_ids) for row in rows])
    return torch.stack([part[:count].sum() for part, count in zip(parts, counts, strict=True)])


def packed_states(
    model: PreTrainedModel, groups: Sequence[Sequence[TokenSequence]], fill: int = 0, long_from: int | None = None
) -> torch.Tensor:
    """Hidden states [completion tokens, hidden] that predict the completions of groups with one prompt each.

    The pass is filled up to `fill` tokens where it is shorter.
    """
    layout = lay_out(groups, model.device, fill, long_from)
    decoder = decoder_of(model)
    with shared_prompts(model), by_own_length(model, layout.long):
        hidden = decoder(
            input_ids=layout.ids, position_ids=layout.positions, **without_cache(decoder), **{NAME: layout}
        ).last_hidden_state[0]
    picked: torch.Tensor = hidden[layout.reads.to(hidden.device)]
    return picked


def padded_states(model: PreTrainedModel, rows: Sequence[TokenSequence]) -> torch.Tensor:
    """The same of one padded batch."""
    decoder = decoder_of(model)
    hidden = decoder(input_ids=padded(rows, model.device), **without_cache(decoder)).last_hidden_state
    where = _predicting(rows)
    picked: torch.Tensor = hidden[where[0].to(hidden.device), where[1].to(hidden.device)]
    return picked


def own_logps(model: PreTrainedModel, rows: Sequence[TokenSequence]) -> torch.Tensor:
    """[completion tokens] float64 by the model's own forward, row by row: no more than one row's logits are held."""
    import torch

    done = []
    for row in rows:
        keep = len(row.completion_ids)
        extra: dict[str, Any] = {"logits_to_keep": keep} if _takes(model, "logits_to_keep") else {}
        logits = model(input_ids=padded([row], model.device), **without_cache(model), **extra).logits[0, -keep:]
        done.append(token_logps(logits, torch.tensor(row.completion_ids, device=logits.device)))
    return torch.cat(done).cpu()


def padded(rows: Sequence[TokenSequence], device: torch.device) -> torch.Tensor:
    """Input ids [rows, longest - 1], padded on the right; each row without its last token, which predicts nothing.

    No mask goes with them. Under causal attention nothing sees what stands to its right, and a mask would
    rule out the fastest attention kernels and give padding rows that attend to nothing.
    """
    import torch

    ids = torch.zeros(len(rows), max(len(row) for row in rows) - 1, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row) - 1] = torch.tensor((row.prompt_ids + row.completion_ids)[:-1])
    return ids.to(device)


def find_head(model: PreTrainedModel, sequence: TokenSequence) -> Head | None:
    """The head that gives the logits of the model's own forward pass over one sequence; None where none does."""
    seen: list[torch.Tensor] = []
    hook = decoder_of(model).register_forward_hook(lambda _module, _inputs, output: seen.append(output[0]))
    try:
        logits = model(input_ids=padded([sequence], model.device), **without_cache(model)).logits[0]
    finally:
        hook.remove()
    if not seen or seen[0].shape[1] != len(sequence) - 1:
        return None
    first = len(sequence.prompt_ids) - 1
    return matching_head(model, seen[0][0, first:], logits[first:])


def _predicting(rows: Sequence[TokenSequence]) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and position of every hidden state that predicts a completion token."""
    import torch

    places = [torch.full((len(row.completion_ids),), place) for place, row in enumerate(rows)]
    positions = [torch.arange(len(row.prompt_ids) - 1, len(row) - 1) for row in rows]
    return torch.cat(places), torch.cat(positions)


def decoder_of(model: PreTrainedModel) -> Any:
    """The model without its head."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    return model.base_model if decoder is None or decoder is model else decoder


def vocabulary(model: PreTrainedModel) -> int:
    """Ids the model has embeddings for."""
    return int(model.get_input_embeddings().weight.shape[0])


def without_cache(module: Any) -> dict[str, bool]:
    """The argument that keeps a forward pass from storing keys and values, where the model takes it."""
    return {"use_cache": False} if _takes(module, "use_cache") else {}


def _takes(module: Any, argument: str) -> bool:
    return argument in inspect.signature(module.forward).parameters
