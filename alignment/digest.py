"""Digests: one way to name a value and one way to name a file's bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
"""Made once: every row of a shard is written by it several times."""


def canonical_text(value: Any) -> str:
    """JSON with sorted keys and no spaces; NaN and infinity are refused, as they have no JSON form."""
    return _CANONICAL.encode(value)


def canonical_json(value: Any) -> bytes:
    """The same in UTF-8."""
    return canonical_text(value).encode("utf-8", "surrogatepass")


def json_digest(value: Any) -> str:
    """SHA-256 (64 hex digits) of a plain value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def lines_digest(lines: Iterable[str]) -> str:
    """SHA-256 over lines, each closed by a newline: for many small keys without a list in memory."""
    sha = hashlib.sha256()
    for line in lines:
        sha.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return sha.hexdigest()


class SetDigest:
    """Digest of lines that come in any order, in memory that does not grow with them; twice is not once.

    The sum of the lines' hashes (AdHash, Bellare & Micciancio 1997) modulo 2**2048, wide enough that a
    generalised birthday attack with millions of lines is out of reach.
    """

    WIDTH = 256  # bytes

    def __init__(self) -> None:
        self._sum = 0

    def add(self, line: str) -> None:
        """Adds a line; the order of lines does not matter, but a repeated line counts again."""
        hashed = hashlib.shake_256(line.encode("utf-8", "surrogatepass")).digest(self.WIDTH)
        self._sum = (self._sum + int.from_bytes(hashed)) % (1 << 8 * self.WIDTH)

    @property
    def hexdigest(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(self._sum.to_bytes(self.WIDTH)).hexdigest()


def stream_sha256(stream: BinaryIO) -> tuple[str, int]:
    """SHA-256 and size in bytes of what is left in a binary stream."""
    sha, size = hashlib.sha256(), 0
    while block := stream.read(1 << 20):
        sha.update(block)
        size += len(block)
    return sha.hexdigest(), size


def file_sha256(path: str | Path) -> tuple[str, int]:
    """SHA-256 and size in bytes of a local file or an fsspec URL."""
    import fsspec

    with fsspec.open(str(path), "rb") as stream:
        return stream_sha256(stream)
