"""Train or held out, by the prompt alone: a prompt never stands on both sides and never moves."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.compute as pc

from alignment.preferences.content import Content, encode

SCALE = 2.0**64


def split_at(prompt: Content, form: str) -> float:
    """Where a prompt stands between 0 and 1, evenly spread by its hash: the first 64 bits of a SHA-256 over 2**64.

    It is held out by every fraction above that. `prompt` may be given decoded or as its Parquet cell. The same in
    every shard, recipe and data set.
    """
    digest = hashlib.sha256(f"{form}\n{encode(prompt)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / SCALE


def is_held_out(prompt: Content, form: str, fraction: float) -> bool:
    """Whether a prompt belongs to the `fraction` (0 to 1) that is measured on and never trained on.

    A prompt held out at one fraction is held out at every larger one.
    """
    return split_at(prompt, form) < fraction


def are_held_out(split_at: pa.Array, fraction: float) -> pa.Array:
    """`is_held_out` of many prompts at once, by where they stand."""
    return pc.less(split_at, fraction)
