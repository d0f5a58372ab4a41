"""Which of the rows that a policy learned were withdrawn since."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.manifest import SPLIT_FILE
from alignment.data.rows import TRAIN_FILE
from alignment.data.withdrawal import Withdrawn, read_withdrawn, rows_held, tombstone
from alignment.errors import counted
from alignment.stages.policy import ON_POLICY_FILE, ROWS_FILE
from alignment.stages.sft_dataset import SftDatasetSummary
from alignment.stages.stage import POLICY, starts_of, trainings_of
from alignment.store import Artifact, Commit, MissingArtifact, Store
from assets.building.upstream import Upstream

CommitOf = Callable[[Artifact], Commit]
IDS_FILE = "row_ids.parquet"
"""What stays of an erased data set of demonstrations: the ids of its rows, those to train on first."""


@dataclass(frozen=True)
class WithdrawnSince:
    """Numbers of rows, demonstrations and prompts that were withdrawn after a policy learned them: `rows` are those
    that its own weights were trained on, `of_reference` those that only a policy that was its reference was."""

    rows: int
    of_reference: int = 0

    def told(self) -> str:
        """In one line."""
        if self.rows:
            were = "was" if self.rows == 1 else "were"
            return f"{self.rows} of its rows {were} withdrawn since (align prefs withdraw)"
        learned = counted(self.of_reference, "row that was", "rows that were")
        return f"its reference learned {learned} withdrawn since (align prefs withdraw)"


def withdrawn_since(
    store: Store, recipe: str, policy: Commit, commit_of: CommitOf | None = None
) -> WithdrawnSince | None:
    """What a policy learned that was withdrawn from a recipe since; None where that is nothing.

    Each row counts once. One that was held out or dropped was not learned. Of a withdrawn shard every row counts that
    the policy was trained on as a row of that shard, whatever the shard was called then. A record that is gone counts
    nothing. `commit_of` gives commit records, by default the store's.
    """
    commit_of = commit_of or store.commit_of
    withdrawn = read_withdrawn(store, recipe) if recipe else Withdrawn()
    if withdrawn == Withdrawn():
        return None
    stones = (tombstone(store, recipe, "shards", shard) for shard in sorted(withdrawn.shards))
    built = {key for stone in stones if stone is not None for key in stone.artifacts}
    own = {trained.key for trained in trainings_of(commit_of, policy)}
    rows, others = set[tuple[str, str]](), set[tuple[str, str]]()
    for trained in _learned_from(commit_of, policy):
        learned = rows if trained.key in own else others
        learned |= {("row", row) for row in _trained_on(store, commit_of, trained, withdrawn, built)}
        for dataset in _datasets(commit_of, trained):
            ids = _demonstrated(store, commit_of(dataset), withdrawn.demonstrations)
            learned |= {("demonstration", row) for row in ids}
    return WithdrawnSince(len(rows), len(others - rows)) if rows | others else None


def learned_withdrawn(upstream: Upstream, policy: Commit) -> bool:
    """Whether a policy's data had rows, demonstrations or shards that were withdrawn from the recipe since, or that of
    a champion that was its reference; also where they were held out, or are not known any more."""
    store, withdrawn = upstream.store, upstream.withdrawn()
    for trained in _learned_from(store.commit_of, policy):
        manifest = store.commit_of(trained.inputs["manifest"])
        shards = {name.removeprefix("shards.") for name in manifest.inputs if name.startswith("shards.")}
        datasets = _datasets(store.commit_of, trained)
        if (
            shards & withdrawn.shards
            or _held(store, manifest.artifact, SPLIT_FILE, withdrawn.rows)
            or any(_held(store, dataset, TRAIN_FILE, withdrawn.demonstrations) for dataset in datasets)
            or (ON_POLICY_FILE in trained.files and _held(store, trained.artifact, ON_POLICY_FILE, withdrawn.rows))
        ):
            return True
    return False


def _learned_from(commit_of: CommitOf, policy: Commit) -> Iterator[Commit]:
    """The trainings that a policy's weights came from, and those of the policies that were their references."""
    outstanding, seen = [policy], set[str]()
    while outstanding:
        for trained in trainings_of(commit_of, outstanding.pop()):
            if trained.key in seen:
                continue
            seen.add(trained.key)
            yield trained
            if (reference := trained.inputs.get("reference")) is not None and reference.kind == POLICY:
                outstanding.append(commit_of(reference))


def _datasets(commit_of: CommitOf, trained: Commit) -> list[Artifact]:
    """The demonstrations that a training stands on: those of the SFT checkpoint where it began, and those that its
    steps took some of."""
    named = (starts_of(commit_of, trained)[-1].inputs.get("dataset"), trained.inputs.get("sft_dataset"))
    return [dataset for dataset in named if dataset is not None]


def _held(store: Store, artifact: Artifact, file: str, rows: frozenset[str]) -> bool:
    """Whether a file of an artifact has any of the row ids; one that was erased counts as having them."""
    try:
        return bool(rows) and bool(rows_held(store, artifact, rows, (file,)))
    except MissingArtifact:
        return True


def _trained_on(store: Store, commit_of: CommitOf, trained: Commit, withdrawn: Withdrawn, built: set[str]) -> set[str]:
    """Ids of the withdrawn rows and prompts that a training was given to train on. `built` are keys of whatever was
    built of withdrawn shards."""
    manifest = commit_of(trained.inputs["manifest"])
    pinned = {name.removeprefix("shards."): one for name, one in manifest.inputs.items() if name.startswith("shards.")}
    shards = [name for name, one in pinned.items() if name in withdrawn.shards or one.key in built]
    ids, names = pa.array(sorted(withdrawn.rows), pa.string()), pa.array(sorted(shards), pa.string())

    def is_gone(batch: pa.RecordBatch) -> Any:
        return pc.or_(pc.is_in(batch["row_id"], value_set=ids), pc.is_in(batch["shard"], value_set=names))

    given = _train_ids(store, manifest.artifact, SPLIT_FILE, ("shard",), is_gone)
    asked = pa.array(sorted(withdrawn.rows if given is None else given), pa.string())
    # training may have dropped some of what the manifest gave it
    kept = _train_ids(store, trained.artifact, ROWS_FILE, (), lambda batch: pc.is_in(batch["row_id"], asked))
    found = (given or set()) if kept is None else kept
    if ON_POLICY_FILE in trained.files:
        with suppress(MissingArtifact):
            found |= rows_held(store, trained.artifact, withdrawn.rows, (ON_POLICY_FILE,))
    return found


def _train_ids(
    store: Store, artifact: Artifact, file: str, columns: tuple[str, ...], wanted: Callable[[pa.RecordBatch], Any]
) -> set[str] | None:
    """Ids of the wanted rows whose split is train, in a file that is read in batches; None if it is gone."""
    found: set[str] = set()
    try:
        with store.open(artifact, file) as stream, pq.ParquetFile(stream) as table:
            for batch in table.iter_batches(columns=["row_id", "split", *columns]):
                rows = batch.filter(pc.and_(pc.equal(batch["split"], "train"), wanted(batch)))
                found.update(rows["row_id"].to_pylist())
    except MissingArtifact:
        return None
    return found


def _demonstrated(store: Store, dataset: Commit, rows: frozenset[str]) -> set[str]:
    """Those of the demonstrations that a data set had to train on; of an erased one the ids are kept, those to train on
    first."""
    if not rows:
        return set()
    with suppress(MissingArtifact):
        return rows_held(store, dataset.artifact, rows, (TRAIN_FILE,))
    with suppress(MissingArtifact), store.open(dataset.artifact, IDS_FILE) as stream:
        ids = pq.read_table(stream, columns=["row_id"])["row_id"][: SftDatasetSummary.of(dataset).train]
        return set(rows.intersection(ids.to_pylist()))
    return set()
