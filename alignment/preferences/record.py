"""One record as it stands in its file, and how it is shown when it is set aside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """One record as it stands in its file; with a `problem`, its `text` stands for it, bytes escaped."""

    source_row: int
    """1-based: the line in JSONL, the record in every other format."""
    value: Any = None
    problem: str | None = None
    text: str = ""


def describe(value: Any) -> str:
    """A record as one line of JSON that can be stored anywhere."""
    try:
        return escaped(json.dumps(value, ensure_ascii=False, default=str))
    except RecursionError:
        return "(nested too deeply to show)"


def escaped(text: str) -> str:
    """Text with what UTF-8 cannot hold (lone surrogates, smuggled bytes) written as backslash escapes."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
