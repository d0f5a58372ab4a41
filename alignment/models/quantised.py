"""Weights of linear layers in four bits while adapters are trained beside them (QLoRA; Dettmers et al. 2023).

NF4 in blocks of 64 with doubly quantised scales (section 3 of the paper), by bitsandbytes, whose kernels run on GPUs
and CPUs. Embeddings, norms and the head stay as they are. Scorer and trainer load the same four bits and multiply by
them the same way, so a policy's first log-probs are its reference's.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment.errors import BadInput

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Quantisation = Literal["nf4"]

BLOCK, BLOCKS = 64, 256
"""Weights that share a scale, and scales that share one of their own."""
NF4_BYTES = 1 / 2 + 1 / BLOCK + 4 / (BLOCK * BLOCKS)
"""Of a weight: four bits, its part of an 8-bit scale, and of that scale's own in float32."""


def missing(quantisation: Quantisation | None) -> str | None:
    """Why weights cannot be quantised in this environment; None where they can."""
    if quantisation is None or importlib.util.find_spec("bitsandbytes") is not None:
        return None
    return (
        f"lora.quantise: {quantisation} needs the package bitsandbytes, which is not installed here: install"
        " alignment-dags[qlora], or leave lora.quantise out"
    )


def loading_quantised(quantisation: Quantisation, precision: str, device: torch.device | str) -> dict[str, Any]:
    """What `from_pretrained` has to be told; each weight is quantised when it arrives on the device.

    Raises `BadInput` where the package is not installed.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if (problem := missing(quantisation)) is not None:
        raise BadInput(problem, field="lora.quantise")
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantisation,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, precision),
    )
    return {"quantization_config": how, "device_map": {"": str(device)}}


def settle(model: PreTrainedModel, folder: Path) -> None:
    """Makes a model that was loaded so compute the same in training and evaluation; raises `BadInput` for one without
    linear layers.

    On some CPUs an evaluation would repack the weights for a kernel that rounds otherwise and has no gradient.
    """
    layers = list(_layers(model))
    if not layers:
        raise BadInput("has no linear layers that could be quantised: leave lora.quantise out", file=str(folder))
    for _, layer in layers:
        layer.support_avx512bf16_for_cpu = False


def elements(weight: torch.Tensor) -> int:
    """Numbers that a parameter stands for: two for each byte of a quantised one."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else state.shape.numel()


def dequantised(model: Any) -> dict[str, torch.Tensor]:
    """Name of each quantised weight in the plain model → the values that it is multiplied by, in float32 on the CPU.

    `model` may have adapters: their layers hold the quantised ones, under names that they add to.
    """
    from bitsandbytes.functional import dequantize_4bit

    plain = getattr(model, "get_base_model", lambda: model)()
    return {
        f"{name.replace('.base_layer', '')}.weight": dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        .float()
        .cpu()
        for name, layer in _layers(plain)
    }


def _layers(model: Any) -> list[tuple[str, Any]]:
    from bitsandbytes.nn.modules import Linear4bit

    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Linear4bit)]
