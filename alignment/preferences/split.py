"""Train or held out, by the prompt alone: a prompt never stands on both sides and never moves."""

from __future__ import annotations

import hashlib

from alignment.preferences.row import Content, encode

SCALE = 2.0**64


def is_held_out(prompt: Content, form: str, fraction: float) -> bool:
    """Whether a prompt belongs to the `fraction` (0 to 1) that is measured on and never trained on.

    `prompt` may be given decoded or as its Parquet cell. The same in every shard, recipe and data set, and
    a prompt held out at one fraction is held out at every larger one.
    """
    digest = hashlib.sha256(f"{form}\n{encode(prompt)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / SCALE < fraction
