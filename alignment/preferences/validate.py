"""Tells records that are preferences from those that are not: one kind, each row once, the rest with a reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from alignment.digest import lines_digest
from alignment.preferences.normalise import normalise
from alignment.preferences.quarantine import Quarantined, duplicate_of, reason_counts
from alignment.preferences.record import Record, describe
from alignment.preferences.row import PreferenceRow

Kind = Literal["paired", "unpaired"]


class Validation:
    """What a pass over one shard, or several files, has seen so far. The first valid row decides the kind.

    Records of rows in `withdrawn` are counted and otherwise as if they were not there, repeated ones too: none of
    their text is kept.
    """

    def __init__(self, withdrawn: frozenset[str] = frozenset()) -> None:
        self.withdrawn = withdrawn
        self.withdrawn_records = 0
        self.kind: Kind | None = None
        self.quarantined: list[Quarantined] = []
        self._seen: dict[str, tuple[str, int]] = {}

    def accepted(self, records: Iterable[Record], source: str) -> Iterator[PreferenceRow]:
        """The valid rows in source order; what is not valid lands in `quarantined`."""
        for record in records:
            row = record.problem or normalise(record.value, source, record.source_row)
            if isinstance(row, PreferenceRow):
                if row.row_id in self.withdrawn:
                    self.withdrawn_records += 1
                    continue
                reason = self._objection(row)
                if reason is None:
                    yield row
                    continue
            else:
                reason = row
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
