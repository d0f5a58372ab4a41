"""Weighted averages of checkpoints of one architecture, tensor by tensor (model soups; Wortsman et al. 2022)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.errors import BadInput
from alignment.models.pin import checkpoint_files
from alignment.models.weights import TensorEntry, tensors, weight_files

SIZES = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
"""What two configurations must say alike before their tensors can be averaged."""


def other_sizes(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first size that two configurations give differently, in words; None if there is none."""
    for name in SIZES:
        if one.get(name) != other.get(name):
            return f"{name} {other.get(name)}, and the policy has {one.get(name)}"
    return None


def write_average(parts: Mapping[str, tuple[Path, float]], like: str, out: Path, *, runs_code: bool = False) -> None:
    """Writes the sum of weight × tensor over the parts, name to (folder, weight), as a checkpoint folder.

    Everything but the weights, and the dtype of each, is that of the part `like`. Sums are made in float64 and rounded
    once. Raises `BadInput` where the parts have not the same tensors.
    """
    from safetensors.torch import save_file

    entries = {name: {entry.name: entry for entry in tensors(folder)} for name, (folder, _) in parts.items()}
    for name in parts:
        _require_same(entries[like], entries[name], name)
    folder = parts[like][0]
    weights = weight_files(folder)
    for path in checkpoint_files(folder, runs_code):
        if path not in [file.resolve() for file in weights]:
            shutil.copyfile(path, out / path.name)
    for file in weights:
        averaged = {
            entry.name: _average([(entries[name][entry.name], weight) for name, (_, weight) in parts.items()], entry)
            for entry in entries[like].values()
            if entry.file == file
        }
        save_file(averaged, out / file.name, metadata={"format": "pt"})


def _average(tensors_of: list[tuple[TensorEntry, float]], like: TensorEntry) -> Any:
    import torch

    first = _tensor(like)
    if not first.is_floating_point():
        return first
    total = torch.zeros(first.shape, dtype=torch.float64)
    for entry, weight in tensors_of:
        total += weight * _tensor(entry).double()
    return total.to(first.dtype)


def _tensor(entry: TensorEntry) -> Any:
    from safetensors import safe_open

    with safe_open(entry.file, framework="pt") as opened:
        return opened.get_tensor(entry.name)


def _require_same(wanted: Mapping[str, TensorEntry], found: Mapping[str, TensorEntry], name: str) -> None:
    if missing := sorted(wanted.keys() ^ found.keys()):
        where = "lacks" if missing[0] in wanted else "has besides"
        raise BadInput(f"merge: {name} is of another architecture than the policy: it {where} tensor {missing[0]}")
    for tensor, entry in wanted.items():
        if found[tensor].shape != entry.shape:
            raise BadInput(
                f"merge: {name} is of another architecture than the policy: tensor {tensor} has the shape"
                f" {list(found[tensor].shape)}, not {list(entry.shape)}"
            )
