"""How many rows one manifest has that another has not, by content, however many both have."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alignment.data.duplicates import IdGroups, binary_ids
from alignment.stages.preference_manifest import Manifest, open_split

NOW, BEFORE = 1, 2
BEGINNING = 24
"""Bits of an id that tell whether a row may be among those of changed shards: a table of 16 MiB."""

Ids = npt.NDArray[np.uint64]


def row_changes(now: tuple[Path, Manifest], before: tuple[Path, Manifest]) -> tuple[int, int]:
    """(rows that are new, rows that are gone) between two manifests, each given with its folder.

    Shards of the same content are in both, so only changed ones are compared; of the others, whose rows may stand
    in a changed shard too, only ids that begin like one of those.
    """
    kept = {shard.row_digest for shard in now[1].shards} & {shard.row_digest for shard in before[1].shards}
    if all(shard.row_digest in kept for _, one in (now, before) for shard in one.shards):
        return 0, 0
    new = gone = 0
    seen = np.zeros(1 << BEGINNING, bool)
    with tempfile.TemporaryDirectory() as scratch:
        groups = IdGroups(Path(scratch, "ids"), now[1].counts["rows"] + before[1].counts["rows"])
        for side, (folder, manifest) in ((NOW, now), (BEFORE, before)):
            for ids in _ids(folder, manifest, [shard.row_digest not in kept for shard in manifest.shards]):
                seen[_beginnings(ids)] = True
                groups.add(ids, side)
        for ids in _ids(*now, [shard.row_digest in kept for shard in now[1].shards]):
            groups.add(ids[seen[_beginnings(ids)]], NOW | BEFORE)
        for begins, sides in groups:
            if len(sides):
                in_manifests = np.bitwise_or.reduceat(sides, np.flatnonzero(begins))
                new += int((in_manifests == NOW).sum())
                gone += int((in_manifests == BEFORE).sum())
    return new, gone


def _ids(folder: Path, manifest: Manifest, wanted: list[bool]) -> Iterator[Ids]:
    with open_split(folder, manifest) as split:
        for index in np.flatnonzero(wanted):
            yield binary_ids(split.of_shard(int(index), ["row_id"])["row_id"])


def _beginnings(ids: Ids) -> Ids:
    return ids[:, 0] >> np.uint64(64 - BEGINNING)
