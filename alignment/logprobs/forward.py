"""The two ways through a model: prompts shared in a packed pass, or whole sequences in a padded batch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alignment.logprobs.attention import NAME, shared_prompts
from alignment.logprobs.completion import completion_logps, row_sums, token_logps
from alignment.logprobs.head import Head, matching_head
from alignment.logprobs.layout import lay_out
from alignment.tokens import TokenSequence

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def packed_logps(model: PreTrainedModel, groups: Sequence[Sequence[TokenSequence]], head: Head) -> list[float]:
    """Completion log-probabilities (nat) of groups of sequences that share their prompt, group by group."""
    layout = lay_out(groups, model.device)
    decoder = decoder_of(model)
    with shared_prompts(model):
        hidden = decoder(
            input_ids=layout.ids, position_ids=layout.positions, **without_cache(decoder), **{NAME: layout}
        ).last_hidden_state[0]
    return completion_logps(head, hidden[layout.reads.to(hidden.device)], layout.rows, vocabulary(model))


def padded_logps(model: PreTrainedModel, rows: Sequence[TokenSequence], head: Head | None) -> list[float]:
    """Completion log-probabilities (nat) of one padded batch; without a head through the model's own forward."""
    ids = padded(rows, model.device)
    if head is None:
        return _by_own_forward(model, rows, ids)
    decoder = decoder_of(model)
    hidden = decoder(input_ids=ids, **without_cache(decoder)).last_hidden_state
    where = _predicting(rows)
    picked = hidden[where[0].to(hidden.device), where[1].to(hidden.device)]
    return completion_logps(head, picked, rows, vocabulary(model))


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


def find_head(model: PreTrainedModel, sequence: TokenSequence) -> Head | None:
    """The head that gives the logits of the model's own forward pass over one sequence; None where none does."""
    seen: list[torch.Tensor] = []
    hook = decoder_of(model).register_forward_hook(lambda _module, _inputs, output: seen.append(output[0]))
    try:
        logits = model(input_ids=padded([sequence], model.device), **without_cache(model)).logits[0]
    finally:
        hook.remove()
    if not seen or seen[0].shape[1] != len(sequence):
        return None
    first = len(sequence.prompt_ids) - 1
    return matching_head(model, seen[0][0, first:-1], logits[first:-1])


def _by_own_forward(model: PreTrainedModel, rows: Sequence[TokenSequence], ids: torch.Tensor) -> list[float]:
    """Row by row, so that no more than one row's logits are held."""
    import torch

    sums = []
    for place, row in enumerate(rows):
        keep = len(row.completion_ids) + 1
        extra: dict[str, Any] = {"logits_to_keep": keep} if _takes(model, "logits_to_keep") else {}
        own = ids[place : place + 1, : len(row)]
        logits = model(input_ids=own, **without_cache(model), **extra).logits[0, -keep:-1]
        wanted = torch.tensor(row.completion_ids, device=logits.device)
        sums += row_sums(token_logps(logits, wanted).cpu(), [row])
    return sums


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
    return {"use_cache": False} if _takes(module, "use_cache") else {}


def _takes(module: Any, argument: str) -> bool:
    return argument in inspect.signature(module.forward).parameters
