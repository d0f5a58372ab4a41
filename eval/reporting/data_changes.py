"""What the training data is, and what of it changed since the champion was trained."""

from __future__ import annotations

from dataclasses import dataclass

from alignment.stages.preference_manifest import read_manifest
from alignment.store import Artifact, Store
from eval.reporting.row_changes import row_changes


@dataclass(frozen=True)
class ShardChange:
    """One shard: `state` is new, changed, removed or the same; rows before and now (None where there were none)."""

    name: str
    state: str
    before: int | None
    now: int | None
    digest: str


@dataclass(frozen=True)
class DataChanges:
    """The shards of a policy beside those of the champion; without a champion every shard is just listed.

    `new_rows` and `gone_rows` count rows by content (None without a champion).
    """

    shards: list[ShardChange]
    rows: int
    train: int
    held_out: int
    dropped: dict[str, int]
    left_out: dict[str, str]
    new_rows: int | None
    gone_rows: int | None


def data_changes(store: Store, manifest: Artifact, champion: Artifact | None) -> DataChanges:
    """Reads both manifests; a shard counts as the same when its rows are, whatever it is called."""
    folder, old_folder = store.fetch(manifest), None if champion is None else store.fetch(champion)
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
    new_rows = gone_rows = None
    if old_folder is not None and before is not None:
        new_rows, gone_rows = row_changes((folder, now), (old_folder, before))
    return DataChanges(
        shards=changes,
        rows=now.counts["rows"],
        train=now.counts["train"],
        held_out=now.counts["held_out"],
        dropped=now.dropped,
        left_out=now.left_out,
        new_rows=new_rows,
        gone_rows=gone_rows,
    )
