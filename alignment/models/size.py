"""What a model takes in memory before any activation, from its configuration alone: nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from alignment.data.tokens import Ids, TokenSequence
from alignment.errors import BadInput
from alignment.models.code import without_implementations

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from alignment.recipe import Lora


BYTES = {"float32": 4, "bfloat16": 2}
TRAINED_BYTES = 16
"""Of a trained parameter in either precision: weight and gradient, a float32 master beside bfloat16 weights, and
AdamW's two moments in float32 (Rajbhandari et al. 2020, section 3.1)."""


def parameter_counts(config: dict[str, Any], lora: Lora | None = None) -> tuple[int, int]:
    """Parameters of the model of a config.json, and those that training changes: all of them, or the adapter's.

    Raises `BadInput` for a configuration that transformers has no causal language model for.
    """
    return _counts(json.dumps(config), None if lora is None else lora.model_dump_json())


@lru_cache(maxsize=8)  # a plan asks the same of every stage, and of 8B even empty layers take a second
def _counts(config_text: str, lora_text: str | None) -> tuple[int, int]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from alignment.recipe import Lora

    config = json.loads(config_text)
    lora = None if lora_text is None else Lora.model_validate_json(lora_text)
    try:
        with torch.device("meta"):
            made = AutoConfig.for_model(**without_implementations(config))
            model = AutoModelForCausalLM.from_config(made, trust_remote_code=False)
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


# Floating-point operations of a scoring pass, and what a device could do in the same time.
#
# Useful work only: every prompt once, the head where a completion token is predicted, causal attention; two
# operations a weight and token (Kaplan et al. 2020, section 2.1).

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
