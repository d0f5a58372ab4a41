"""From last hidden states to logits at just the positions that count, as the model's own head would.

Most models apply a plain linear head; some scale or cap its result (Granite, Cohere, Gemma 2). Which it
is gets found by comparing with the model's own forward pass on a real sequence; a model that none of
these describe goes through its own forward pass always, which holds the logits of whole rows in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Head = Callable[["torch.Tensor"], "torch.Tensor"]
"""[positions, hidden] → [positions, vocabulary]."""

logger = logging.getLogger(__name__)

SAME = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 1e-2}
"""Largest difference, relative to the largest logit, between one head and another way to compute it."""


def heads(model: PreTrainedModel) -> Iterator[tuple[str, Head]]:
    """The heads that the model's configuration suggests, by name; the first that agrees with it is right."""
    linear = model.get_output_embeddings()
    if linear is None:
        return
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
