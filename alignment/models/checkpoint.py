"""A checkpoint folder: config.json, safetensors weights and a tokenizer, read and written one way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.errors import BadInput
from alignment.models.configuration import VOCABULARY_FILES, max_positions, read_config
from alignment.models.describe import CheckpointDigest, checkpoint_summary, digest_checkpoint
from alignment.models.weights import weight_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PRECISIONS = ("float32", "bfloat16", "float64")

__all__ = [
    "CheckpointDigest",
    "checkpoint_summary",
    "default_device",
    "digest_checkpoint",
    "load_model",
    "load_tokenizer",
    "max_positions",
    "read_config",
    "save_checkpoint",
]


def default_device() -> torch.device:
    """This process's accelerator (by LOCAL_RANK under a launcher), else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer, as it is; raises `BadInput` when there is none or it cannot be read."""
    from transformers import AutoTokenizer

    folder = Path(folder)
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise BadInput(f"no tokenizer here (expected one of {', '.join(VOCABULARY_FILES)})", file=str(folder))
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a damaged file raises whatever its parser stumbled on, bare Exception included
        raise BadInput(f"the tokenizer cannot be read: {_first_line(error)}", file=str(folder)) from error
    return tokenizer


def load_model(folder: str | Path, precision: str, device: torch.device | str | None = None) -> PreTrainedModel:
    """The folder's causal language model in eval mode, all weights in `precision`.

    Attention is SDPA, or eager for the few architectures without it (Gemma 2 caps its attention logits).
    Only safetensors weights are read. `device` is `default_device()` by default.
    """

    folder = Path(folder)
    if precision not in PRECISIONS:
        raise BadInput(f"unknown precision '{precision}'; there are {', '.join(PRECISIONS)}")
    weight_files(folder)
    try:
        model = _load(folder, precision, "sdpa")
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise BadInput(f"the model cannot be loaded: {_first_line(error)}", file=str(folder)) from error
    return model.to(default_device() if device is None else device).eval()  # type: ignore[arg-type]


def _load(folder: Path, precision: str, attention: str) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, precision),
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
        )
    except ValueError as error:
        if attention == "sdpa" and "scaled_dot_product_attention" in str(error):
            return _load(folder, precision, "eager")
        raise
    return model


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Writes config, safetensors weights and tokenizer (with its chat template) into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weight_files(folder)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
