"""What a model takes in memory before any activation, from its configuration alone: nothing is loaded."""

from __future__ import annotations

from typing import Any

from alignment.errors import BadInput
from alignment.recipe import Lora

BYTES = {"float32": 4, "bfloat16": 2}
TRAINED_BYTES = 16
"""Of a trained parameter in either precision: weight and gradient, a float32 master beside bfloat16 weights, and
AdamW's two moments in float32 (Rajbhandari et al. 2020, section 3.1)."""


def parameter_counts(config: dict[str, Any], lora: Lora | None = None) -> tuple[int, int]:
    """Parameters of the model of a config.json, and those that training changes: all of them, or the adapter's.

    Raises `BadInput` for a configuration that transformers has no causal language model for.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    except (ValueError, TypeError) as error:
        raise BadInput(f"no model can be made of this configuration: {str(error).splitlines()[0]}") from error
    whole = sum(weight.numel() for weight in model.parameters())
    if lora is None:
        return whole, whole
    head = model.get_output_embeddings()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    wanted = [layer for name, layer in layers.items() if layer is not head and _targeted(name, lora.target_modules)]
    return whole, sum(lora.rank * (layer.in_features + layer.out_features) for layer in wanted)


def forward_bytes(parameters: int, precision: str) -> int:
    """Of a model that is only run; without activations and the cache of keys and values."""
    return BYTES[precision] * parameters


def training_bytes(parameters: int, trained: int, precision: str) -> int:
    """Of a model that is trained, on every device, as each holds all of it; without activations."""
    return TRAINED_BYTES * trained + (0 if trained == parameters else forward_bytes(parameters, precision))


def _targeted(name: str, targets: list[str] | str) -> bool:
    return isinstance(targets, str) or any(name == one or name.endswith(f".{one}") for one in targets)
