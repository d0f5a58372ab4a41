"""A sharded model's weights: each rank reads its own rows of them from disk, so that a run reads each byte once.

The model is made without weights, cut, and filled layer by layer. No process has more of it than its rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alignment.errors import BadInput, first_few
from alignment.models.checkpoint import (
    NOT_FINITE,
    default_device,
    first_not_finite,
    load_config,
    load_generation_config,
    require_precision,
    without_dropout,
)
from alignment.models.code import loading
from alignment.models.sharding import local, require_shardable, rows_of, shard
from alignment.models.weights import TensorEntry, tensors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def load_sharded(folder: Path, precision: str, *, runs_code: bool = False) -> PreTrainedModel:
    """The folder's model in eval mode with this rank's rows of its weights on its device, in `precision`, frozen.

    Every rank calls this at the same time. Raises `BadInput` for a model that cannot be sharded.
    """
    import torch

    require_precision(precision, default_device())
    model = empty_model(folder, precision, runs_code=runs_code).requires_grad_(False)
    require_shardable(model, getattr(torch, precision))  # before its weights are looked for under other names
    shard(model, precision, default_device(), read=reader(model, folder))
    return model


def empty_model(folder: Path, precision: str, *, runs_code: bool = False, dropout: bool = True) -> PreTrainedModel:
    """The folder's model in eval mode without its weights, which are on the meta device; its buffers are there.

    `dropout` and `runs_code` as `alignment.models.checkpoint.load_model` has them.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM
    from transformers.conversion_mapping import get_model_conversion_mapping

    config = load_config(folder, runs_code)
    if getattr(config, "quantization_config", None) is not None:
        raise BadInput("its weights are quantised, and cannot be sharded; leave out sharded", file=str(folder))
    if not dropout:
        without_dropout(config)

    def made(attention: str) -> PreTrainedModel:
        how = {"dtype": getattr(torch, precision), "attn_implementation": attention}
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, **how, trust_remote_code=loading(runs_code)["trust_remote_code"]
        )
        return model

    with init_empty_weights(include_buffers=False):
        try:
            model = made("sdpa")
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            model = made("eager")
    model.tie_weights()
    model._weight_conversions = get_model_conversion_mapping(model)
    if (settings := load_generation_config(folder)) is not None:
        model.generation_config = settings
    return model.eval()


class Reader:
    """A checkpoint's tensors by the names that the model has for them. `bytes_read` counts what came from disk."""

    def __init__(self, folder: Path, entries: dict[str, TensorEntry]) -> None:
        self.folder, self.entries = folder, entries
        self.bytes_read = 0

    def __call__(self, name: str, owner: torch.Tensor) -> torch.Tensor:
        """This rank's rows of a weight, in its dtype, on the CPU."""
        first, last = rows_of(owner) if owner.dim() else (0, 1)
        rows = self._rows(name, first, last).view(local(owner).shape).to(owner.dtype)
        if (first_not_finite([(name, rows)])) is not None:
            raise BadInput(f"{name} {NOT_FINITE} in {str(owner.dtype).removeprefix('torch.')}", file=str(self.folder))
        return rows

    def whole(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """All of a weight."""
        shape = self.entries[name].shape
        return self._rows(name, 0, shape[0] if shape else 1).view(shape).to(dtype)

    def _rows(self, name: str, first: int, last: int) -> torch.Tensor:
        import torch

        entry = self.entries[name]
        data = entry.rows(first, last)
        self.bytes_read += len(data)
        return torch.frombuffer(data, dtype=getattr(torch, DTYPES[entry.dtype])) if data else torch.empty(0)


def reader(model: PreTrainedModel, folder: Path) -> Reader:
    """What reads the weights of `model` from `folder`, one after the other.

    Raises `BadInput` where the files lack a weight or have another shape for it.
    """
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    wanted = model.state_dict(keep_vars=True)
    renamings = [each for each in model._weight_conversions if isinstance(each, WeightRenaming)]
    entries: dict[str, TensorEntry] = {}
    for entry in tensors(folder):
        name = rename_source_key(entry.name, renamings, [], model.base_model_prefix, wanted)[0]
        if name not in wanted and entry.name in wanted:
            name = entry.name
        if name not in wanted:
            continue
        if entry.dtype not in DTYPES:
            raise BadInput(
                f"{entry.name} is {entry.dtype}, which cannot be sharded; leave out sharded", file=str(folder)
            )
        entries[name] = entry
    names: dict[int, list[str]] = {}
    for name, weight in wanted.items():
        names.setdefault(id(weight), []).append(name)
    for same in names.values():  # a tied weight is stored once
        there = next((entries[name] for name in same if name in entries), None)
        if there is not None:
            entries |= {name: entries.get(name, there) for name in same}
    shapes = {name: tuple(weight.shape) for name, weight in wanted.items()}
    lacking = sorted(shapes.keys() - entries.keys())
    other = sorted(name for name in shapes.keys() & entries.keys() if entries[name].shape != shapes[name])
    for wrong, what in ((lacking, "lack"), (other, "have another shape for")):
        if wrong:
            why = "the files are not whole, or config.json is another model's"
            raise BadInput(f"the weights {what} {first_few(wrong)}: {why}", file=str(folder))
    return Reader(folder, entries)
