"""Tells records that are preferences from those that are not: one kind, each row once, the rest with a reason."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from alignment.data.files import expand
from alignment.data.forms import normalise
from alignment.data.readers import Record, describe, read_records
from alignment.data.rows import PreferenceRow, unpaired_row, write_records
from alignment.digest import lines_digest
from alignment.errors import BadInput

# Quarantine: records that cannot be used, each kept with the reason and its text.

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


Kind = Literal["paired", "unpaired"]


class Validation:
    """What a pass over one shard, or several files, has seen so far. The first valid row decides the kind.

    Records of rows in `withdrawn` are counted and otherwise as if they were not there, repeated ones too: none of
    their text is kept. With `split_pairs` a pair is two labelled completions, withdrawn as a pair or one by one.
    """

    def __init__(self, withdrawn: frozenset[str] = frozenset(), *, split_pairs: bool = False) -> None:
        self.withdrawn = withdrawn
        self.split_pairs = split_pairs
        self.records = 0
        self.withdrawn_records = 0
        self.kind: Kind | None = None
        self.quarantined: list[Quarantined] = []
        self._seen: dict[str, tuple[str, int]] = {}

    def accepted(self, records: Iterable[Record], source: str) -> Iterator[PreferenceRow]:
        """The valid rows in source order; what is not valid lands in `quarantined`."""
        for record in records:
            self.records += 1
            found = record.problem or normalise(record.value, source, record.source_row)
            rows = [found] if isinstance(found, PreferenceRow) else []
            reasons = [] if rows else [str(found)]
            if rows and self.split_pairs and rows[0].row_id not in self.withdrawn:
                rows = halves(rows[0])
            kept = [row for row in rows if row.row_id not in self.withdrawn]
            self.withdrawn_records += bool(rows) and not kept
            for row in kept:
                reason = self._objection(row)
                if reason is None:
                    yield row
                else:
                    reasons.append(reason)
            for reason in reasons:
                text = record.text if record.problem else describe(record.value)
                self.quarantined.append(Quarantined(source, record.source_row, reason, text))

    def _objection(self, row: PreferenceRow) -> str | None:
        kind: Kind = "paired" if row.paired else "unpaired"
        if self.kind is None:
            self.kind = kind
        if kind != self.kind:
            return f"{kind} row among {self.kind} ones"
        if row.row_id in self._seen:
            return duplicate_of(*self._seen[row.row_id], here=row.source)
        self._seen[row.row_id] = (row.source, row.source_row)
        return None

    @property
    def rows(self) -> int:
        return len(self._seen)

    @property
    def reasons(self) -> dict[str, int]:
        return reason_counts(entry.reason for entry in self.quarantined)

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted row ids: the same for the same rows in any order."""
        return lines_digest(sorted(self._seen))


def halves(row: PreferenceRow) -> list[PreferenceRow]:
    """A pair as its chosen completion with a thumb up and its rejected one with a thumb down; another row as it is."""
    if row.chosen is None or row.rejected is None:
        return [row]
    sides = ((row.chosen, True), (row.rejected, False))
    return [unpaired_row(row.prompt, side, label, row.source, row.source_row) for side, label in sides]


LOOK = 100
"""Records of a file that `first_kind` reads at most."""


def first_kind(url: str, withdrawn: frozenset[str] = frozenset()) -> Kind | None:
    """The kind of a file's rows, by the first valid one, without reading on.

    None where none of the first `LOOK` records is valid, or the file cannot be read: what makes a shard of it says why.
    """
    validation = Validation(withdrawn)
    with contextlib.suppress(BadInput):
        next(validation.accepted(itertools.islice(read_records(url), LOOK), url), None)
    return validation.kind


# Checks preference files as a shard would read them, without writing anything.


def check_files(paths: list[str]) -> dict[str, Any]:
    """What would become of the files' records, taken together in the order given.

    `rows` = `accepted` + `quarantined` (counts), `reasons` {reason: count}, `kind` (paired, unpaired, or None
    when no row is valid), `digest` over the sorted row ids, and `quarantined_rows` [{file, row, reason}].
    Raises `BadInput` naming a file that cannot be read as a whole.
    """
    validation = Validation()
    accepted = 0
    for path in paths:
        for url in expand(path):
            accepted += sum(1 for _ in validation.accepted(read_records(url), url))
    quarantined = validation.quarantined
    return {
        "rows": accepted + len(quarantined),
        "accepted": accepted,
        "quarantined": len(quarantined),
        "reasons": validation.reasons,
        "kind": validation.kind,
        "digest": validation.digest,
        "quarantined_rows": [
            {"file": entry.source, "row": entry.source_row, "reason": entry.reason} for entry in quarantined
        ],
    }
