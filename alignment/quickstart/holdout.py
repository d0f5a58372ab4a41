"""Which prompts are kept for the question suites: decided by what a prompt says, so that no seed can mix them."""

from __future__ import annotations

import hashlib

HELD_OUT_OF = 8
"""One prompt in this many belongs to the suites; the others may be trained on."""


def normalised(prompt: str) -> str:
    """A prompt without its case and spacing: two prompts that agree in this count as one."""
    return " ".join(prompt.casefold().split())


def is_held_out(prompt: str) -> bool:
    """True for the prompts that only question suites may use."""
    digest = hashlib.sha256(normalised(prompt).encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_OF == 0
