"""Carrying a plan out: each artifact is asked again, under its lock, whether it may go."""

from __future__ import annotations

from alignment.store import Commit, Store
from alignment.store.erase import erase, erasures, finish, gone, keys_in_use, remaining
from alignment.store.store import refs_of
from alignment_dags.gc.checkpoints import POLICY, SFT, stood_on
from alignment_dags.gc.items import Plan
from alignment_dags.gc.leftovers import remove
from alignment_dags.gc.text import DATASET, SHARD, current_keys, ids_instead


def carry_out(store: Store, found: Plan) -> list[tuple[str, str]]:
    """Removes what the plan names, after what an interrupted removal left; returns what a builder holds."""
    busy: list[tuple[str, str]] = []
    in_use = keys_in_use(store)
    for kind in (SHARD, DATASET, POLICY, SFT):
        for erasure in erasures(store, kind):
            if remaining(store, erasure):
                commit = erasure.commit
                with store.unless_building(kind, commit.key) as free:
                    if free and commit.key not in in_use and not (stands(store, commit) and uses(store, commit)):
                        finish(store, erasure)
                    else:
                        busy.append((kind, commit.key))
    for one in found.doomed:
        with store.unless_building(one.kind, one.key) as free:
            if free and one.key not in in_use and not uses(store, one.commit):
                erase(store, one.commit, one.files, one.why, ids_instead(store, one.commit))
            else:
                busy.append((one.kind, one.key))
    for left in found.leftovers:
        with store.unless_building(left.kind, left.key) as free:
            if free:
                remove(store, left)
            else:
                busy.append((left.kind, left.key))
    forget_erased(store)
    return busy


def uses(store: Store, commit: Commit) -> bool:
    """Whether a recipe stands on an artifact by now: refs may have moved since the plan was made."""
    current = current_keys if commit.kind in (SHARD, DATASET) else stood_on
    return commit.key in current(store, commit.kind)


def stands(store: Store, commit: Commit) -> bool:
    """Whether the marker is still there: an erasure that ended before it went has erased nothing."""
    marker = store.find(commit.kind, commit.key)
    return marker is not None and marker.attempt == commit.attempt


def forget_erased(store: Store) -> None:
    """Removes refs to what was erased, so that whoever looks at them finds it behind.

    The other half is in how an asset writes its ref: it looks afterwards whether what it points to still stands.
    """
    for kind in (SHARD, DATASET, POLICY, SFT):
        for named in refs_of(store, kind, partitioned=kind == SHARD):
            if gone(store, named.ref.artifact) is not None:
                store.remove_ref(named.recipe, kind, named.partition)
