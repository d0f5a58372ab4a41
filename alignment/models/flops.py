"""Floating-point operations of a scoring pass, and what a device could do in the same time.

Useful work only: every prompt once, the head where a completion token is predicted, causal attention; two
operations a weight and token (Kaplan et al. 2020, section 2.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from alignment.tokens import Ids, TokenSequence

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations a second, by what the device's name holds; from the makers' data sheets."""


EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def scoring_flops(model: PreTrainedModel, sequences: Iterable[TokenSequence]) -> float | None:
    """Operations that scoring the sequences needs, the prompt of several completions counted once.

    None for mixtures of experts, of whose weights a token uses some.
    """
    config: Any = model.config.get_text_config()
    if any(getattr(config, name, None) for name in EXPERTS):
        return None
    vectors = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part}
    body: int = sum(weight.numel() for weight in model.parameters() if weight.ndim > 1 and id(weight) not in vectors)
    heads = getattr(config, "num_attention_heads", 0)  # 0: no attention at all
    width = heads * int(getattr(config, "head_dim", None) or config.hidden_size // max(1, heads))
    prompts: set[Ids] = set()
    tokens = completion_tokens = seen = 0
    for row in sequences:
        prompt, own = len(row.prompt_ids), len(row.completion_ids)
        if row.prompt_ids not in prompts:
            prompts.add(row.prompt_ids)
            tokens += prompt
            seen += prompt * (prompt + 1) // 2
        tokens += own
        completion_tokens += own
        seen += own * prompt + own * (own + 1) // 2
    return (
        2.0 * body * tokens
        + 2.0 * int(config.hidden_size) * int(config.vocab_size) * completion_tokens
        + 4.0 * width * int(config.num_hidden_layers) * seen
    )


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """What the device can do in a second; None where that is not known (CPUs, other GPUs, other precisions)."""
    import torch

    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
