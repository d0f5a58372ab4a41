"""Tells records that are preferences from those that are not: one kind, each row once, the rest with a reason."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from alignment.data.forms.advice import of_the_form, remedy
from alignment.data.forms.gathered import gathered
from alignment.data.forms.table import Refused, read_record, row_said, with_numbers
from alignment.data.readers import Record, describe, read_records
from alignment.data.rows import PreferenceRow, text_of, unpaired_row, write_records
from alignment.digest import lines_digest
from alignment.errors import BadInput
from alignment.recipe.data import DEFAULT_READING, Reading

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
    """Writes the rows that were not taken, with their reasons; returns how many."""
    return write_records(path, SCHEMA, map(asdict, quarantined))


Kind = Literal["paired", "unpaired"]


class Validation:
    """What a pass over one shard, or several files, has seen so far. The first valid row decides the kind.

    Records of rows in `withdrawn` are counted and otherwise as if they were not there, repeated ones too: none of
    their text is kept. A record may give several rows: `records` counts what was read, `forms` the rows of each form.
    With `split_pairs` a pair is two labelled completions, withdrawn as a pair or one by one.
    """

    def __init__(
        self,
        withdrawn: frozenset[str] = frozenset(),
        reading: Reading = DEFAULT_READING,
        *,
        split_pairs: bool = False,
    ) -> None:
        self.withdrawn = withdrawn
        self.reading = reading
        self.split_pairs = split_pairs
        self.withdrawn_records = 0
        self.records = 0
        self.kind: Kind | None = None
        self.forms: Counter[str] = Counter()
        self.quarantined: list[Quarantined] = []
        self._seen: dict[str, tuple[str, int]] = {}
        self._scored: list[str] = []
        self._columns: dict[tuple[str, str], tuple[str, ...]] = {}

    def accepted(self, records: Iterable[Record], source: str) -> Iterator[PreferenceRow]:
        """The valid rows in source order; what is not valid lands in `quarantined`."""
        for record in gathered(records):
            self.records += record.records
            if record.problem:
                self.quarantined.append(Quarantined(source, record.source_row, record.problem, record.text))
                continue
            outcome = read_record(record.value, source, record.source_row, self.reading)
            as_written = not (self.reading.columns or self.reading.labels or self.split_pairs)
            plain = outcome.form is None or (outcome.form.plain and as_written)
            for row in outcome.rows:
                rows = [row]
                if self.split_pairs and row.paired and row.row_id not in self.withdrawn:
                    if (close := too_close(row, self.reading)) is not None:  # its halves have no scores
                        self._set_aside(record, source, Refused(close, None if plain else row_said(row)))
                        continue
                    rows = self._new_halves(row)
                kept = [each for each in rows if each.row_id not in self.withdrawn]
                self.withdrawn_records += bool(rows) and not kept
                for each in kept:
                    numbered = with_numbers(each, record.value, self.reading)
                    reason = numbered if isinstance(numbered, str) else self._objection(numbered)
                    if reason is None:
                        assert not isinstance(numbered, str)
                        self.forms[outcome.form.name if outcome.form else ""] += 1
                        yield numbered
                    else:  # a whole record's text would keep that of its other rows, which may be withdrawn
                        self._set_aside(record, source, Refused(reason, None if plain else row_said(each)))
            for refused in outcome.refused:
                self._set_aside(record, source, refused)

    def _new_halves(self, pair: PreferenceRow) -> list[PreferenceRow]:
        """A pair's two completions, without one that another pair of the same record gave: that is no duplicate."""
        here = pair.source, pair.source_row
        return [half for half in halves(pair) if self._seen.get(half.row_id) != here]

    def _set_aside(self, record: Record, source: str, refused: Refused) -> None:
        said = record.value if refused.value is None else refused.value
        self.quarantined.append(Quarantined(source, record.source_row, refused.reason, describe(said)))
        if isinstance(record.value, dict):
            self._columns.setdefault((source, refused.reason), tuple(map(str, record.value)))

    def _objection(self, row: PreferenceRow) -> str | None:
        kind: Kind = "paired" if row.paired else "unpaired"
        if self.kind is None:
            self.kind = kind
        if kind != self.kind:
            return f"{kind} row among {self.kind} ones"
        if row.row_id in self._seen:
            return duplicate_of(*self._seen[row.row_id], here=row.source)
        if (reason := too_close(row, self.reading)) is not None:
            return reason
        self._seen[row.row_id] = (row.source, row.source_row)
        if row.chosen_score is not None:
            self._scored.append(f"{row.row_id} {row.chosen_score!r} {row.rejected_score!r}")
        if row.weight is not None or row.margin is not None:
            self._scored.append(f"{row.row_id} weight {row.weight!r} margin {row.margin!r}")
        return None

    def keep(self, row_ids: Collection[str]) -> None:
        """Forgets the rows that are not among these: they were valid and are not used."""
        self._seen = {row_id: place for row_id, place in self._seen.items() if row_id in row_ids}
        self._scored = [line for line in self._scored if line.partition(" ")[0] in row_ids]

    def advice(self, source: str, accepted: int = 0) -> str | None:
        """What to do about the commonest reason for which records of a source were set aside, said once for all. Where
        more rows than these were `accepted`, the form is known, and a row that is not in it has a fault of its own."""
        counts = Counter(entry.reason for entry in self.quarantined if entry.source == source)
        for reason, count in counts.most_common():
            if of_the_form(reason) and count < accepted:
                continue
            if (told := remedy(reason, self._columns.get((source, reason), ()))) is not None:
                return told
        return None

    @property
    def rows(self) -> int:
        """Rows that were taken."""
        return len(self._seen)

    @property
    def reasons(self) -> dict[str, int]:
        """{reason: quarantined rows}."""
        return reason_counts(entry.reason for entry in self.quarantined)

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted row ids: the same for the same rows in any order."""
        return lines_digest(sorted(self._seen))

    @property
    def content_digest(self) -> str:
        """The digest with the scores, weights and margins of rows that have any."""
        return lines_digest(sorted(self._seen) + sorted(self._scored))


def too_close(row: PreferenceRow, reading: Reading) -> str | None:
    """Why a pair's sides, or their scores, are too near to each other for the recipe, if they are."""
    gap, ratio, most = reading.min_score_gap, reading.min_score_ratio, reading.max_side_similarity
    if not row.paired:
        return None
    if most is not None and side_similarity(row) > most:
        return f"sides more similar than {most:g}"
    if gap is None and ratio is None:
        return None
    chosen, rejected = row.chosen_score, row.rejected_score
    if chosen is None or rejected is None:
        return "no scores to compare"
    if gap is not None and chosen - rejected < gap:
        return f"score gap below {gap:g}"
    if ratio is not None and (chosen <= 0 or chosen < ratio * rejected):
        return f"score ratio below {ratio:g}"
    return None


def side_similarity(row: PreferenceRow) -> float:
    """Words that both sides of a pair have, over those that either has, with repetition (Jaccard index)."""
    chosen, rejected = (Counter(text_of(side or "").lower().split()) for side in (row.chosen, row.rejected))
    either = (chosen | rejected).total()
    return (chosen & rejected).total() / either if either else 1.0


def halves(row: PreferenceRow) -> list[PreferenceRow]:
    """A pair as its chosen completion with a thumb up and its rejected one with a thumb down; another row as it is."""
    if row.chosen is None or row.rejected is None:
        return [row]
    sides = ((row.chosen, True), (row.rejected, False))
    return [unpaired_row(row.prompt, side, label, row.source, row.source_row) for side, label in sides]


LOOK = 100
"""Records of a file that `first_kind` reads at most."""


def first_kind(url: str, withdrawn: frozenset[str] = frozenset(), reading: Reading = DEFAULT_READING) -> Kind | None:
    """The kind of a file's rows, by the first valid one, without reading on.

    None where none of the first `LOOK` records is valid, or the file cannot be read: what makes a shard of it says why.
    """
    validation = Validation(withdrawn, reading)
    with contextlib.suppress(BadInput):
        next(validation.accepted(itertools.islice(read_records(url), LOOK), url), None)
    return validation.kind
