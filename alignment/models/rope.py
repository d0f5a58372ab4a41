"""Rotary positions that look at the longest sequence of a pass, held to each sequence's own length.

longrope (Phi-3, Phi-4) rotates with long factors once anything in the pass is longer than the length the model was
first trained at, so a short sequence's values would depend on its company. Here each token of a packed pass takes the
factors that its sequence would take alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def long_from(model: PreTrainedModel) -> int | None:
    """The length, in tokens that are forwarded, above which a sequence takes long factors; None without longrope."""
    config: Any = model.config.get_text_config()
    settings = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in settings.values() if isinstance(value, dict)] or [settings]
    lengths = [int(each["original_max_position_embeddings"]) for each in nested if each.get("rope_type") == "longrope"]
    return min(lengths) if lengths else None


@contextmanager
def by_own_length(model: PreTrainedModel, long: torch.Tensor | None) -> Iterator[None]:
    """For the while, tokens where `long` [1, tokens] is true rotate with long factors, and no other does."""
    if long is None:
        yield
        return
    import torch

    border = long_from(model)
    assert border is not None
    held: list[tuple[Any, Any]] = []

    def of(rotary: Any) -> Any:
        plain = rotary.forward

        def forward(x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            beyond = position_ids.new_full((position_ids.shape[0], 1), border)
            short = plain(x, position_ids.clamp(max=border - 1), *args, **kwargs)
            longer = plain(x, torch.cat([position_ids, beyond], 1), *args, **kwargs)
            return tuple(torch.where(long[..., None], b[:, :-1], a) for a, b in zip(short, longer, strict=True))

        return forward

    for module in model.modules():
        if hasattr(module, "rope_type") and hasattr(module, "original_inv_freq"):
            held.append((module, module.__dict__.get("forward")))
            module.forward = of(module)
    try:
        yield
    finally:
        for module, before in held:
            if before is None:
                del module.forward
            else:
                module.forward = before
