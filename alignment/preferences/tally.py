"""How many rows of a manifest went where."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from alignment.preferences.quarantine import reason_counts


class Tally:
    """Counts places (`SPLIT_SCHEMA`) as they come."""

    def __init__(self) -> None:
        self._splits: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def add(self, places: pa.Table) -> None:
        for column, counter in (("split", self._splits), ("reason", self._reasons)):
            for found in places[column].drop_null().value_counts():
                counter[found["values"].as_py()] += found["counts"].as_py()

    @property
    def counts(self) -> dict[str, int]:
        return {"rows": self._splits.total(), **{name: self._splits[name] for name in ("train", "held_out", "dropped")}}

    @property
    def dropped(self) -> dict[str, int]:
        return reason_counts(self._reasons)
