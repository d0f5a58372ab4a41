"""The training data, and its changes since the champion was trained."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alignment.data.duplicates import IdGroups, binary_ids
from alignment.data.manifest import Manifest, open_split, read_manifest
from alignment.store import Artifact, Store

# Rows that only one of two manifests has, by content, in little memory for any number of shared rows.

NOW, BEFORE = 1, 2
PREFIX_BITS = 24
"""Leading bits of an id. A table over them (16 MiB) tells whether a row may be in a changed shard."""

Ids = npt.NDArray[np.uint64]


def row_changes(now: tuple[Path, Manifest], before: tuple[Path, Manifest]) -> tuple[int, int]:
    """(new rows, removed rows) from the manifest `before` to the manifest `now`, each given with its folder.

    Shards with equal content are in both manifests, so only the other shards are compared. A row of a shared shard may
    be in a changed shard too; of the shared shards only ids are read that begin like an id of a changed shard.
    """
    kept = {shard.row_digest for shard in now[1].shards} & {shard.row_digest for shard in before[1].shards}
    if all(shard.row_digest in kept for _, manifest in (now, before) for shard in manifest.shards):
        return 0, 0
    new = removed = 0
    seen = np.zeros(1 << PREFIX_BITS, bool)
    with tempfile.TemporaryDirectory() as scratch:
        groups = IdGroups(Path(scratch, "ids"), now[1].counts["rows"] + before[1].counts["rows"])
        for side, (folder, manifest) in ((NOW, now), (BEFORE, before)):
            for ids in _ids(folder, manifest, [shard.row_digest not in kept for shard in manifest.shards]):
                seen[_prefixes(ids)] = True
                groups.add(ids, side)
        for ids in _ids(*now, [shard.row_digest in kept for shard in now[1].shards]):
            groups.add(ids[seen[_prefixes(ids)]], NOW | BEFORE)
        for begins, sides in groups:
            if len(sides):
                in_manifests = np.bitwise_or.reduceat(sides, np.flatnonzero(begins))
                new += int((in_manifests == NOW).sum())
                removed += int((in_manifests == BEFORE).sum())
    return new, removed


def _ids(folder: Path, manifest: Manifest, wanted: list[bool]) -> Iterator[Ids]:
    with open_split(folder, manifest) as split:
        for index in np.flatnonzero(wanted):
            yield binary_ids(split.of_shard(int(index), ["row_id"])["row_id"])


def _prefixes(ids: Ids) -> Ids:
    return ids[:, 0] >> np.uint64(64 - PREFIX_BITS)


@dataclass(frozen=True)
class ShardChange:
    """A shard. `state` is new, changed, removed, same, or listed if there is no champion; None for unknown row
    counts."""

    name: str
    state: str
    before: int | None
    now: int | None
    digest: str


@dataclass(frozen=True)
class DataChanges:
    """The shards of a policy compared with the champion's; without a champion every shard is listed.

    `new_rows` and `removed_rows` count rows by content (None without a champion).
    """

    shards: list[ShardChange]
    rows: int
    train: int
    held_out: int
    dropped: dict[str, int]
    left_out: dict[str, str]
    new_rows: int | None
    removed_rows: int | None


def data_changes(store: Store, manifest: Artifact, champion: Artifact | None) -> DataChanges:
    """Compares both manifests; a shard counts as the same if its rows are the same, whatever its name."""
    folder, old_folder = (
        store.fetch(manifest, deep="once"),
        None if champion is None else store.fetch(champion, deep="once"),
    )
    now, before = read_manifest(folder), None if old_folder is None else read_manifest(old_folder)
    old = {} if before is None else {shard.name: shard for shard in before.shards}
    contents = {shard.row_digest for shard in old.values()}
    changes: list[ShardChange] = []
    for shard in sorted(now.shards, key=lambda shard: shard.name):
        was = old.get(shard.name)
        if before is None:
            state = "listed"
        elif shard.row_digest in contents:
            state = "same"
        else:
            state = "new" if was is None else "changed"
        rows_before = shard.rows if state == "same" else None if was is None else was.rows
        changes.append(ShardChange(shard.name, state, rows_before, shard.rows, shard.row_digest[:12]))
    kept = {shard.row_digest for shard in now.shards} | {None}
    names = {shard.name for shard in now.shards}
    changes += [
        ShardChange(name, "removed", shard.rows, None, shard.row_digest[:12])
        for name, shard in sorted(old.items())
        if name not in names and shard.row_digest not in kept
    ]
    new_rows = removed_rows = None
    if old_folder is not None and before is not None:
        new_rows, removed_rows = row_changes((folder, now), (old_folder, before))
    return DataChanges(
        shards=changes,
        rows=now.counts["rows"],
        train=now.counts["train"],
        held_out=now.counts["held_out"],
        dropped=now.dropped,
        left_out=now.left_out,
        new_rows=new_rows,
        removed_rows=removed_rows,
    )
