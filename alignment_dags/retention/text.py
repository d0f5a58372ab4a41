"""The text of withdrawn rows: which artifacts still contain it, and which of these nobody uses.

Only shards, SFT data sets, sampled answers and the pairs made of them contain rows or prompts as text, and the cache
of token ids as ids. Reference log-probs, manifests,
other caches and training records contain row ids, keys and numbers. Requests and reports contain no rows, and MLflow
gets none. Token ids are erased at once, whatever uses the row: a build that needs them tokenises the row again.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.data.demonstrations import normalise as normalise_sft
from alignment.data.validate import QUARANTINE_FILE
from alignment.data.withdrawal import SHARDS, Holder, Withdrawn, read_withdrawn, tombstone
from alignment.store import Artifact, Commit, Store
from alignment.store.store import Named, refs_of
from alignment_dags.retention.items import Kept, ToErase
from alignment_dags.retention.sampled import (
    CANDIDATES,
    PAIRS,
    PROMPTS,
    RANKED,
    ROW_FILES,
    current_generated,
    current_sampled,
)
from assets.learned import IDS_FILE

SHARD, DATASET, MANIFEST = "preference_shard", "sft_dataset", "preference_manifest"
DEMONSTRATIONS = Holder(DATASET, ROW_FILES[DATASET], normalise_sft)


def withdrawn_text(store: Store, recipes: Iterable[str], in_use: set[str]) -> tuple[list[ToErase], list[Kept]]:
    """Artifacts with text that the recipes have withdrawn: those that can be erased, and those still in use."""
    withdrawn = {recipe: read_withdrawn(store, recipe) for recipe in recipes}
    rows: frozenset[str] = frozenset().union(*(withdrawal.rows for withdrawal in withdrawn.values()))
    demonstrations: frozenset[str] = frozenset().union(
        *(withdrawal.demonstrations for withdrawal in withdrawn.values())
    )
    shards = {
        key: f"shard {shard} of {recipe} was withdrawn"
        for recipe, withdrawal in withdrawn.items()
        for shard in withdrawal.shards
        if (stone := tombstone(store, recipe, "shards", shard)) is not None
        for key in stone.artifacts
    }
    to_erase: list[ToErase] = []
    kept: list[Kept] = []
    for holder, ids, whole in (
        (SHARDS, rows, shards),
        (DEMONSTRATIONS, demonstrations, {}),
        (PROMPTS, rows, {}),
        (PAIRS, rows, {}),
    ):
        if not ids and not whole:
            continue
        current = current_keys(store, holder.kind)
        for commit in store.commits(holder.kind):
            why = whole.get(commit.key)
            if why is None and holder.held(store, commit.artifact, ids):
                why = "rows were withdrawn"
            if why is None:
                continue
            if commit.key in current:
                kept.append(Kept(holder.kind, commit.key, _still_used(current[commit.key], why, withdrawn)))
            elif commit.key in in_use:
                kept.append(Kept(holder.kind, commit.key, f"{why}; a running build uses it"))
            else:
                files = tuple(name for name in (QUARANTINE_FILE, *holder.files) if name in commit.files)
                to_erase.append(ToErase(commit, files, why))
    return to_erase, kept


def withdrawn_ids(store: Store, recipes: Iterable[str], to_erase: Iterable[ToErase]) -> set[str]:
    """Ids of all rows whose token ids must be erased: withdrawn rows, and rows of shards that will be erased.

    Erase token ids first: an erased shard no longer says which rows it had.
    """
    rows = {row for recipe in recipes for row in read_withdrawn(store, recipe).rows}
    for item in to_erase:
        for name in SHARDS.files if item.kind == SHARD else ():
            with store.open(item.commit.artifact, name) as stream:
                rows.update(pq.read_table(stream, columns=["row_id"])["row_id"].to_pylist())
    return rows


def ids_instead(store: Store, commit: Commit) -> dict[str, bytes]:
    """A file with the row ids of an SFT data set, which nothing else records; manifests record those of shards."""
    if commit.kind != DATASET:
        return {}
    tables = [
        pq.read_table(pa.BufferReader(store.read(commit.artifact, name)), columns=["row_id"])
        for name in DEMONSTRATIONS.files
    ]
    stream = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables), stream, compression="zstd")
    return {IDS_FILE: stream.getvalue().to_pybytes()}


def current_keys(store: Store, kind: str) -> dict[str, list[tuple[str, str | None]]]:
    """Key of every artifact of a kind that a recipe uses now, to its (recipe, shard) pairs."""
    if kind in (CANDIDATES, RANKED):
        return current_sampled(store, kind)
    users: dict[str, list[tuple[str, str | None]]] = {}
    for key, recipe in current_generated(store) if kind == SHARD else ():
        users.setdefault(key, []).append((recipe, "of generated pairs"))
    withdrawn: dict[str, Withdrawn] = {}
    for named in refs_of(store, kind, partitioned=kind == SHARD):
        if named.recipe not in withdrawn:
            withdrawn[named.recipe] = read_withdrawn(store, named.recipe)
        if named.partition not in withdrawn[named.recipe].shards:
            users.setdefault(named.ref.artifact.key, []).append((named.recipe, named.partition))
    for named in refs_of(store, MANIFEST) if kind == SHARD else ():
        for name, artifact in _waiting(store, named).items():
            users.setdefault(artifact.key, []).append((named.recipe, name.removeprefix("shards.")))
    return users


def _waiting(store: Store, manifest: Named) -> dict[str, Artifact]:
    """The shards that a recipe's manifest pins, if the recipe's policy was not trained on this manifest."""
    policy = store.read_ref(manifest.recipe, "policy_checkpoint")
    trained = {} if policy is None else store.commit_of(policy.artifact).inputs
    if any(artifact.identity() == manifest.ref.artifact.identity() for artifact in trained.values()):
        return {}
    return {
        name: artifact
        for name, artifact in store.commit_of(manifest.ref.artifact).inputs.items()
        if artifact.kind == SHARD
    }


def _still_used(users: list[tuple[str, str | None]], why: str, withdrawn: dict[str, Withdrawn]) -> str:
    uses = ", ".join(f"shard {shard} of {recipe}" if shard else f"data of {recipe}" for recipe, shard in users)
    behind = all(
        (withdrawal := withdrawn.get(recipe, Withdrawn())).rows
        or withdrawal.demonstrations
        or shard in withdrawal.shards
        for recipe, shard in users
    )
    what = "run `align run` first" if behind else "withdraw there too, and run it"
    return f"{why}, but it is the current {uses}: {what}"
