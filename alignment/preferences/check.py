"""Checks preference files as a shard would read them, without writing anything."""

from __future__ import annotations

from typing import Any

from alignment.preferences.records import read_records
from alignment.preferences.validate import Validation
from alignment.sources import expand


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
