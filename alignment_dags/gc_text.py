"""The text of withdrawn rows: which artifacts still hold it, and which of those nobody stands on.

Only shard artifacts hold rows as text: reference log-probs, manifests, caches and training records hold ids, keys
and numbers, requests and reports hold no rows, and MLflow is given none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.artifacts import Commit, Store
from alignment.artifacts.listing import refs_of
from alignment.preferences.normalise import normalise
from alignment.preferences.quarantine import QUARANTINE_FILE
from alignment.preferences.row import ROWS_FILE, PreferenceRow
from alignment.preferences.tombstones import Withdrawn, read_withdrawn, tombstone
from alignment.preferences.withdrawal import rows_held
from alignment_dags.gc_items import Doomed, Kept

SHARD = "preference_shard"


def withdrawn_text(store: Store, recipes: Iterable[str], in_use: set[str]) -> tuple[list[Doomed], list[Kept]]:
    """Shard artifacts that hold what the recipes have withdrawn: those that can go, and those still stood on."""
    withdrawn = {recipe: read_withdrawn(store, recipe) for recipe in recipes}
    rows = frozenset().union(*(one.rows for one in withdrawn.values()))
    shards = {
        key: f"shard {shard} of {recipe} was withdrawn"
        for recipe, one in withdrawn.items()
        for shard in one.shards
        if (stone := tombstone(store, recipe, "shards", shard)) is not None
        for key in stone.artifacts
    }
    if not rows and not shards:
        return [], []
    current = _current(store)
    doomed: list[Doomed] = []
    kept: list[Kept] = []
    for commit in store.commits(SHARD):
        why = shards.get(commit.key) or ("rows were withdrawn" if holds_text(store, commit, rows) else None)
        if why is None:
            continue
        if commit.key in current:
            kept.append(Kept(SHARD, commit.key, _stands(current[commit.key], why, withdrawn)))
        elif commit.key in in_use:
            kept.append(Kept(SHARD, commit.key, f"{why}; a running build stands on it"))
        else:
            doomed.append(Doomed(commit, (QUARANTINE_FILE, ROWS_FILE), why))
    return doomed, kept


def holds_text(store: Store, commit: Commit, rows: frozenset[str]) -> bool:
    """Whether any of the rows stands in a shard artifact, among its rows or set aside in its quarantine."""
    return bool(rows) and (bool(rows_held(store, commit.artifact, rows)) or _quarantined(store, commit, rows))


def forget_withdrawn_shards(store: Store, recipes: Iterable[str]) -> None:
    """Removes the refs of withdrawn shards whose artifact was erased: a ref never points at what is gone."""
    names = set(recipes)
    for named in refs_of(store, SHARD, partitioned=True):
        if named.recipe in names and store.find(SHARD, named.ref.artifact.key) is None:
            shard = str(named.partition)
            if shard in read_withdrawn(store, named.recipe).shards:
                for stage in (SHARD, "reference_logprobs"):
                    path = store.ref_path(named.recipe, stage, shard)
                    if store.fs.exists(path):
                        store.fs.rm_file(path)


def _current(store: Store) -> dict[str, list[tuple[str, str]]]:
    """Key of every shard artifact that a recipe uses now, to its (recipe, shard) pairs."""
    found: dict[str, list[tuple[str, str]]] = {}
    gone: dict[str, Withdrawn] = {}
    for named in refs_of(store, SHARD, partitioned=True):
        if named.recipe not in gone:
            gone[named.recipe] = read_withdrawn(store, named.recipe)
        if named.partition not in gone[named.recipe].shards:
            found.setdefault(named.ref.artifact.key, []).append((named.recipe, str(named.partition)))
    return found


def _stands(users: list[tuple[str, str]], why: str, withdrawn: dict[str, Withdrawn]) -> str:
    told = ", ".join(f"shard {shard} of {recipe}" for recipe, shard in users)
    behind = all(withdrawn.get(recipe, Withdrawn()).rows for recipe, _ in users)
    what = "run `align run` first" if behind else "withdraw there too, and run it"
    return f"{why}, but it is the current {told}: {what}"


def _quarantined(store: Store, commit: Commit, rows: frozenset[str]) -> bool:
    table = pq.read_table(pa.BufferReader(store.read(commit.artifact, QUARANTINE_FILE)), columns=["text"])
    for text in table["text"].to_pylist():
        try:
            row = normalise(json.loads(text), "", 1)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, PreferenceRow) and row.row_id in rows:
            return True
    return False
