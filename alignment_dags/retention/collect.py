"""`align gc`: the plan of what is removed and what stays, and its execution."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignment.address import shown
from alignment.data.withdrawal import FOLDER, Withdrawn, last_withdrawal, read_withdrawn
from alignment.errors import BadInput, counted
from alignment.logprobs.token_ids import count_token_ids, erase_token_ids
from alignment.recipe import Recipe, load_recipe
from alignment.store import Commit, Store
from alignment.store.erase import current_erasure, erase, erasures, finish, keys_in_use, remaining
from alignment.store.store import refs_of
from alignment_dags.retention.checkpoints import (
    POLICY,
    SFT,
    current_checkpoint_keys,
    learned_and_kept,
    unneeded_checkpoints,
)
from alignment_dags.retention.items import Kept, Plan, leftovers, remove
from alignment_dags.retention.sampled import CANDIDATES, RANKED
from alignment_dags.retention.text import (
    DATASET,
    SHARD,
    current_keys,
    ids_instead,
    withdrawn_ids,
    withdrawn_text,
)
from alignment_dags.run.plan import plan
from alignment_dags.run.workspace import Workspace
from resources.mlflow import Tracking, TrackingUnreachable
from resources.pools import load_pools
from resources.store import ArtifactStore

# Execution of a plan: each artifact is checked again, under its lock, before it is erased.


def carry_out(store: Store, removal_plan: Plan) -> list[tuple[str, str]]:
    """Finishes interrupted erasures, then removes what the plan names; returns (kind, key) of all that is in use."""
    busy: list[tuple[str, str]] = []
    in_use = keys_in_use(store)
    erase_token_ids(store, removal_plan.tokenised)
    for kind in (SHARD, DATASET, CANDIDATES, RANKED, POLICY, SFT):
        for erasure in erasures(store, kind):
            if remaining(store, erasure):
                commit = erasure.commit
                with store.unless_building(kind, commit.key) as free:
                    if free and commit.key not in in_use and not (is_current(store, commit) and uses(store, commit)):
                        finish(store, erasure)
                    else:
                        busy.append((kind, commit.key))
    for item in removal_plan.to_erase:
        with store.unless_building(item.kind, item.key) as free:
            if free and item.key not in in_use and not uses(store, item.commit):
                erase(store, item.commit, item.files, item.why, ids_instead(store, item.commit))
            else:
                busy.append((item.kind, item.key))
    for leftover in removal_plan.leftovers:
        with store.unless_building(leftover.kind, leftover.key) as free:
            if free:
                remove(store, leftover)
            else:
                busy.append((leftover.kind, leftover.key))
    forget_erased(store)
    return busy


def unpublish(store: Store) -> list[Kept]:
    """Removes the copies of erased policies from MLflow; returns a reason if MLflow does not answer."""
    erased = {erasure.commit.digest: erasure.message for erasure in erasures(store, POLICY)}
    for commit in store.commits(POLICY):
        erased.pop(commit.digest, None)  # made again since, or by another request too
    if not erased:
        return []
    try:
        Tracking(attempts=1).unpublish(erased)
    except TrackingUnreachable as error:
        return [Kept(POLICY, "", f"copies of erased policies stay in MLflow until it answers: {error}")]
    return []


def uses(store: Store, commit: Commit) -> bool:
    """Whether a recipe uses an artifact now: refs may have moved since the plan was made."""
    of_text = commit.kind in (SHARD, DATASET, CANDIDATES, RANKED)
    current = current_keys if of_text else current_checkpoint_keys
    return commit.key in current(store, commit.kind)


def is_current(store: Store, commit: Commit) -> bool:
    """Whether the commit marker is still there: an erasure interrupted before it removed the marker erased nothing."""
    marker = store.find(commit.kind, commit.key)
    return marker is not None and marker.attempt == commit.attempt


def forget_erased(store: Store) -> None:
    """Removes refs to erased artifacts, so that their nodes count as missing.

    An asset does the other half: after it has written its ref, it checks that the artifact was not erased meanwhile.
    """
    for kind in (SHARD, DATASET, POLICY, SFT):
        for named in refs_of(store, kind, partitioned=kind == SHARD):
            if current_erasure(store, named.ref.artifact) is not None:
                store.remove_ref(named.recipe, named.node, named.partition)


KEEP = 5
"""Number of policies that a recipe keeps beside its champion, by default."""


def collect(paths: list[Path], *, keep: int = KEEP, dry_run: bool = False) -> dict[str, Any]:
    """Removes what the given recipes (none: all in the store) no longer need; with `dry_run` only lists it."""
    recipes = [load_recipe(path) for path in paths]
    store = ArtifactStore().open()
    names = [recipe.name for recipe in recipes] or _names(store)
    removal_plan = plan_of(store, names, everything=not recipes, keep=keep, resumable=_planned(store, recipes))
    tokenised = count_token_ids(store, removal_plan.tokenised)
    busy = [] if dry_run else carry_out(store, removal_plan)
    if not dry_run:
        removal_plan.kept.extend(unpublish(store))
    erased = [item for item in removal_plan.to_erase if (item.kind, item.key) not in busy]
    removed = [item for item in removal_plan.leftovers if (item.kind, item.key) not in busy]
    kept = [
        *removal_plan.kept,
        *(Kept(kind, key, "it is being built now, or has just come into use") for kind, key in busy),
    ]
    return {
        "dry_run": dry_run,
        "erased": [item.plain() for item in erased],
        "token_ids": tokenised,
        "leftovers": [{"path": item.path, "bytes": item.bytes, "why": item.why} for item in removed],
        "kept": [asdict(item) for item in kept],
        "bytes": Plan(erased, [], removed).bytes,
        "source": _sources(store, recipes),
    }


def plan_of(store: Store, names: list[str], *, everything: bool, keep: int, resumable: Collection[str] = ()) -> Plan:
    """What would be removed; changes nothing. `resumable` are keys whose work the next run continues."""
    in_use = keys_in_use(store)
    to_erase, kept = withdrawn_text(store, names, in_use)
    aliased: set[str] = set()
    try:
        aliased |= set(Tracking(attempts=1).aliased_policies())
        to_erase += unneeded_checkpoints(store, None if everything else names, keep, aliased, in_use)
    except TrackingUnreachable as error:
        kept.append(Kept(POLICY, "", f"no checkpoint is removed while it is not known which have an alias: {error}"))
    erased = {item.key for item in to_erase}
    kept += learned_and_kept(store, names, erased, aliased, in_use)
    tokenised = withdrawn_ids(store, names, to_erase)
    left = leftovers(store, resumable=resumable, withdrawn_at=last_withdrawal(store, names))
    return Plan(to_erase, kept, list(left), tokenised)


def _planned(store: Store, recipes: list[Recipe]) -> set[str]:
    """Keys that the next run of the recipes needs, as far as they are known; shards have no work folders."""
    pools = load_pools()
    keys: set[str] = set()
    for recipe in recipes:
        workspace = Workspace(recipe, pools, lambda: store)
        with suppress(BadInput):  # a source that cannot be reached must not prevent erasures
            keys |= {step.key for step in plan(workspace, only=()) if step.key is not None}
    return keys


def _names(store: Store) -> list[str]:
    """Names of the recipes in the store."""
    known = {named.recipe for named in refs_of(store, SHARD, partitioned=True)}
    known |= {path.rsplit("/", 1)[-1] for path in store.matching(store.path(FOLDER), "*")}
    return sorted(known)


def _sources(store: Store, recipes: list[Recipe]) -> list[str]:
    return sorted(
        {
            shown(source)
            for recipe in recipes
            if read_withdrawn(store, recipe.name) != Withdrawn()
            for source in [
                *recipe.preferences.file_patterns,
                *((recipe.sft and recipe.sft.dataset and recipe.sft.dataset.files) or []),
            ]
        }
    )


# The output of `align gc`.


def show_collected(result: dict[str, Any]) -> None:
    """Prints what was erased, or would be, and what was kept."""
    would = "would be erased" if result["dry_run"] else "erased"
    for item in result["erased"]:
        files = ", ".join(item["files"]) if len(item["files"]) <= 3 else f"{len(item['files'])} files"
        print(f"{would}: {item['kind']} {item['key'][:12]}: {files} ({size(item['bytes'])}); {item['why']}")
    for item in result["leftovers"]:
        print(f"{would}: {item['path']} ({size(item['bytes'])}); {item['why']}")
    if result["token_ids"]:
        print(f"{would}: the token ids of {counted(result['token_ids'], 'row')}")
    for item in result["kept"]:
        name = item["name"] or f"{item['kind']} {item['key'][:12]}"
        print(f"kept: {name}: {item['why']}")
    print(f"{size(result['bytes'])} {'would be freed' if result['dry_run'] else 'freed'}; every commit record stays")
    for place in result["source"]:
        print(f"your own file, not changed: {place} (withdrawn rows stay in it until you remove them)")


def size(count: float) -> str:
    """A number of bytes with its unit."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
