"""Selective activation checkpointing: what is large and cheap of a layer is computed again in the backward pass.

Norms and MLPs keep their input alone. The backward pass computes the norms, the MLP's first matrices and their product
again; attention and the MLP's last matrix run once. Checkpointing a whole layer, which keeps less and computes all of
it again, is Transformers' own.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from alignment.models.sharding import layers_of

log = logging.getLogger(__name__)

MLP_NAMES = ("mlp", "feed_forward", "ffn")


def recompute_cheap_parts(model: Any) -> None:
    """From now on the layers' own norms and MLPs keep no more than their input while the model is trained."""
    layers = layers_of(model)
    parts = [part for layer in layers for name, part in layer.named_children() if _is_norm(part) or name in MLP_NAMES]
    if not any(name in MLP_NAMES for layer in layers for name, _ in layer.named_children()):
        log.warning("gradient_checkpointing: selective finds no MLP in the layers of %s", type(model).__name__)
    for part in parts:
        _recompute(part)


def _is_norm(part: Any) -> bool:
    return type(part).__name__.endswith("Norm")


def _recompute(module: Any) -> None:
    import torch
    from torch.utils.checkpoint import checkpoint

    forward = module.forward
    # numbers are drawn again as they were drawn before, which takes time where nothing is
    draws = any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in module.modules())

    @functools.wraps(forward)
    def keeping_input(*args: Any, **kwargs: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=draws, **kwargs)

    module.forward = keeping_input
