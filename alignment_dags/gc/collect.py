"""What `align gc` does: the plan of what goes and what stays, and carrying it out."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignment.data.withdrawal import FOLDER, Withdrawn, read_withdrawn
from alignment.errors import BadInput
from alignment.recipe import Recipe, load_recipe
from alignment.store import Store
from alignment.store.erase import keys_in_use
from alignment.store.store import refs_of
from alignment_dags.gc.carry_out import carry_out
from alignment_dags.gc.checkpoints import POLICY, spent_checkpoints
from alignment_dags.gc.items import Kept, Plan
from alignment_dags.gc.leftovers import leftovers
from alignment_dags.gc.text import SHARD, withdrawn_text
from alignment_dags.plan import plan
from assets.graph import nodes_of
from resources.mlflow import Tracking, TrackingUnreachable
from resources.pools import load_pools
from resources.store import ArtifactStore

KEEP = 5
"""Policies a recipe keeps beside its champion, by default."""


def collect(paths: list[Path], *, keep: int = KEEP, dry_run: bool = False) -> dict[str, Any]:
    """Removes, or with `dry_run` only lists, what the given recipes (none: all in the store) no longer need."""
    recipes = [load_recipe(path) for path in paths]
    store = ArtifactStore().open()
    names = [recipe.name for recipe in recipes] or _names(store)
    found = plan_of(store, names, everything=not recipes, keep=keep, resumable=_planned(store, recipes))
    busy = [] if dry_run else carry_out(store, found)
    erased = [one for one in found.doomed if (one.kind, one.key) not in busy]
    swept = [one for one in found.leftovers if (one.kind, one.key) not in busy]
    kept = [*found.kept, *(Kept(kind, key, "it is being built, or came into use, right now") for kind, key in busy)]
    return {
        "dry_run": dry_run,
        "erased": [one.plain() for one in erased],
        "leftovers": [{"path": one.path, "bytes": one.bytes, "why": one.why} for one in swept],
        "kept": [asdict(one) for one in kept],
        "bytes": Plan(erased, [], swept).bytes,
        "source": _sources(store, recipes),
    }


def plan_of(store: Store, names: list[str], *, everything: bool, keep: int, resumable: Collection[str] = ()) -> Plan:
    """What would go; nothing is touched. `resumable` are keys that a next run makes, and goes on with."""
    in_use = keys_in_use(store)
    doomed, kept = withdrawn_text(store, names, in_use)
    try:
        aliased = Tracking(attempts=1).aliased_policies()
        doomed += spent_checkpoints(store, None if everything else names, keep, aliased, in_use)
    except TrackingUnreachable as error:
        kept.append(Kept(POLICY, "", f"no checkpoint is removed while it is not known which have an alias: {error}"))
    return Plan(doomed, kept, list(leftovers(store, resumable=resumable)))


def _planned(store: Store, recipes: list[Recipe]) -> set[str]:
    """Keys that the next run of the recipes needs, as far as they are known by now; shards keep no work."""
    pools = load_pools()
    keys: set[str] = set()
    for recipe in recipes:
        with suppress(BadInput):  # a source out of reach keeps nobody's text from being erased
            keys |= {one.key for one in plan(recipe, nodes_of(recipe, pools), store, ()) if one.key is not None}
    return keys


def _names(store: Store) -> list[str]:
    """Recipes that the store knows of."""
    known = {named.recipe for named in refs_of(store, SHARD, partitioned=True)}
    known |= {str(path).rsplit("/", 1)[-1] for path in store.fs.glob(store.path(FOLDER, "*"))}
    return sorted(known)


def _sources(store: Store, recipes: list[Recipe]) -> list[str]:
    return sorted(
        {
            source
            for recipe in recipes
            if read_withdrawn(store, recipe.name) != Withdrawn()
            for data in (recipe.preferences, recipe.sft.dataset)
            for source in (data.files or [] if data else [])
        }
    )
