"""Safetensors weights as bytes: headers read and tensors streamed, so no model is ever held in memory.

A safetensors file is eight bytes (little-endian length of the header), a JSON header that gives every
tensor's dtype, shape and byte range, and the tensors' bytes. Reading those directly keeps bfloat16 and
float8 exact and needs no framework.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from alignment.errors import BadInput, no_such

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LARGEST_HEADER = 100_000_000
BLOCK = 1 << 22


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in a file; `start` and `end` are absolute byte offsets."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Numbers in the tensor."""
        return math.prod(self.shape)

    def blocks(self) -> Iterator[bytes]:
        """The tensor's bytes in blocks of at most 4 MiB."""
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            left = self.end - self.start
            while left:
                block = stream.read(min(left, BLOCK))
                if not block:
                    raise BadInput(f"ends inside tensor {self.name}", file=str(self.file))
                left -= len(block)
                yield block

    def rows(self, first: int, last: int) -> bytearray:
        """The bytes of rows [first, last) alone; a single number is one row."""
        count = self.shape[0] if self.shape else 1
        size = (self.end - self.start) // count if count else 0
        data = bytearray((last - first) * size)
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.start + first * size)
            view = memoryview(data)
            while view:  # Linux reads at most 2 GiB at once
                if not (count := stream.readinto(view)):
                    raise BadInput(f"ends inside tensor {self.name}", file=str(self.file))
                view = view[count:]
        return data


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files the model is in: one, or the shards its index names (the index not among them).

    Raises `BadInput` for a folder without, with pickled weights only, with an adapter only, or whose
    index names a shard that is not there.
    """
    if not folder.is_dir():
        is_file = "is a file; a model is a folder with config.json"
        raise BadInput(is_file if folder.exists() else no_such("model folder", folder), file=str(folder))
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        return _shards(folder / INDEX_FILE)
    if (folder / "adapter_model.safetensors").is_file():
        raise BadInput("holds an adapter, not a model: merge it into its base first", file=str(folder))
    if any(path.suffix in PICKLED for path in folder.iterdir()):
        raise BadInput("holds pickled weights only, which are never loaded: convert to safetensors", file=str(folder))
    raise BadInput(f"no weights: neither {SINGLE_FILE} nor {INDEX_FILE}", file=str(folder))


def tensors(folder: Path) -> list[TensorEntry]:
    """All tensors of a checkpoint sorted by name, whatever files they are split over."""
    entries = sorted((entry for path in weight_files(folder) for entry in _header(path)), key=lambda entry: entry.name)
    for one, other in pairwise(entries):
        if one.name == other.name:
            raise BadInput(f"tensor {one.name} is in {one.file.name} and in {other.file.name}", file=str(folder))
    return entries


# Weights that are not finite: whatever passes through one is NaN.

EXPONENT = {"BF16": ("<u2", 0x7F80), "F8_E5M2": ("u1", 0x7C), "F8_E4M3": ("u1", 0x7F)}
"""Formats that NumPy lacks: as integers, and the bits that are all set in what is infinite or no number."""
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def is_finite(dtype: str, block: bytes) -> bool:
    """Whether every element of whole elements' bytes is finite; integers always are."""
    import numpy as np

    if dtype in FLOATS:
        return bool(np.isfinite(np.frombuffer(block, FLOATS[dtype])).all())
    if dtype in EXPONENT:
        kind, bits = EXPONENT[dtype]
        return not ((np.frombuffer(block, kind) & bits) == bits).any()
    return True


def not_finite(file: Path) -> str | None:
    """The first tensor of a safetensors file with an element that is not finite; None where all are."""
    for tensor in _header(file):
        if not all(is_finite(tensor.dtype, block) for block in tensor.blocks()):
            return tensor.name
    return None


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = [index.parent / name for name in sorted(names)]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadInput("not a safetensors index", file=str(index)) from error
    if not files:
        raise BadInput("names no file with weights", file=str(index))
    for path in files:
        if path.parent != index.parent or path.suffix != ".safetensors":
            raise BadInput(f"names {path.name}, which is not a safetensors file beside it", file=str(index))
        if not path.is_file():
            raise BadInput(f"names {path.name}, which is not there", file=str(index))
    return files


def _header(path: Path) -> Iterator[TensorEntry]:
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise BadInput("not a whole safetensors file", file=str(path))
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError) as error:
            raise BadInput("not a safetensors file", file=str(path)) from error
    if not isinstance(header, dict):
        raise BadInput("not a safetensors file", file=str(path))
    base = 8 + length
    for name, about in header.items():
        if name == "__metadata__":
            continue
        try:
            (start, end), dtype, shape = about["data_offsets"], str(about["dtype"]), tuple(map(int, about["shape"]))
            whole = 0 <= start <= end <= size - base
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"tensor {name} is not described as safetensors are", file=str(path)) from error
        if not whole:
            raise BadInput(f"cut short: tensor {name} is not all there", file=str(path))
        yield TensorEntry(name, dtype, shape, path, base + start, base + end)
