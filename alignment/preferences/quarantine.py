"""Quarantine: records that cannot be used, each kept with the reason and its text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from alignment.preferences.parquet import write_records

QUARANTINE_FILE = "quarantine.parquet"
DUPLICATE = "duplicate"
SCHEMA = pa.schema(
    [("source", pa.string()), ("source_row", pa.int64()), ("reason", pa.string()), ("text", pa.string())]
)


@dataclass(frozen=True)
class Quarantined:
    """A record set aside; `text` is its line or its JSON, with bytes that are not UTF-8 escaped."""

    source: str
    source_row: int
    reason: str
    text: str


def duplicate_of(source: str, source_row: int, here: str) -> str:
    """The reason of a row that was seen before; names the file only if it is another one."""
    where = f"row {source_row}" if source == here else f"{source} row {source_row}"
    return f"{DUPLICATE} of {where}"


def reason_counts(reasons: Iterable[str] | Mapping[str, int]) -> dict[str, int]:
    """Reason → count, sorted by reason; duplicates of whatever row count as one reason."""
    counts: Counter[str] = Counter()
    for reason, count in Counter(reasons).items():
        counts[DUPLICATE if reason.startswith(f"{DUPLICATE} of ") else reason] += count
    return dict(sorted(counts.items()))


def most_common(counts: dict[str, int]) -> str:
    """The commonest reason, for an error's one line."""
    if not counts:
        return "it holds no records"
    reason = max(sorted(counts), key=lambda name: counts[name])
    return f"most common reason: {reason} ({counts[reason]} of {sum(counts.values())})"


def write_quarantine(path: str | Path, quarantined: Iterable[Quarantined]) -> int:
    return write_records(path, SCHEMA, map(asdict, quarantined))
