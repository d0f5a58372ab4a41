"""What a row says: plain text or messages, and how either stands in a Parquet cell."""

from __future__ import annotations

import json
from typing import Any, Literal

from alignment.digest import canonical_json, json_digest

Form = Literal["text", "chat"]
"""`text`: plain strings, which get no chat template. `chat`: messages, which do."""
Message = dict[str, str]
"""Exactly `role` and `content`."""
Content = str | tuple[Message, ...]


def content_id(content: dict[str, Any]) -> str:
    """32 hex digits over the content as it stands: no trimming, no Unicode normalisation."""
    return json_digest(content)[:32]


def form_of(content: Content) -> Form:
    return "text" if isinstance(content, str) else "chat"


def encode(content: Content) -> str:
    """The content as one Parquet cell: text as it is, messages as canonical JSON."""
    return content if isinstance(content, str) else canonical_json(content).decode("utf-8")


def decode(form: str, cell: str) -> Content:
    """The inverse of `encode`."""
    return cell if form == "text" else tuple(json.loads(cell))
