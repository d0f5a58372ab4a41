"""`align run`: brings a recipe up to date, phase by phase, and says what came of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg

from alignment.recipe import Recipe, load_recipe
from alignment.store import Store
from alignment_dags.dead_runs import end_dead_runs
from alignment_dags.launch import RunFailed, launch, launches
from alignment_dags.limits import apply_pools
from alignment_dags.phases import phases_of
from alignment_dags.plan import plan
from alignment_dags.recipes import RECIPES
from alignment_dags.watching.drop import drop
from assets.building.factory import shards_definition
from assets.building.upstream import Upstream
from assets.evaluation_report import asked_of
from assets.graph import nodes_of
from resources.home import ensure_home
from resources.pools import load_pools
from resources.store import ArtifactStore


@dataclass
class Outcome:
    """What `align run` did: the Dagster runs it made and those it ended; `failure` says why it stopped early."""

    recipe: Recipe
    store: Store
    dagster_runs: list[str] = field(default_factory=list)
    ended_runs: list[str] = field(default_factory=list)
    seconds: float = 0.0
    failure: str | None = None


def run_recipe(path: Path, say: Callable[[str], None]) -> Outcome:
    """Runs every phase that has something to do. Raises `BadInput` before anything starts, if it can be seen then.

    A step that fails ends the run: `Outcome.failure` says why, and everything made so far stands.
    """
    began = time.monotonic()
    recipe = load_recipe(path)
    os.environ[RECIPES] = str(Path(path).resolve())
    ensure_home()
    store, pools = ArtifactStore().open(), load_pools()
    outcome = Outcome(recipe, store)
    asked_of(recipe, str(path))  # what a person has to mend shows before anything starts, here and in the plan
    plan(recipe, nodes_of(recipe, pools), store)
    with dg.DagsterInstance.get() as instance:
        outcome.ended_runs = end_dead_runs(instance)
        for run_id in outcome.ended_runs:
            say(f"ended run {run_id[:8]}: its process is gone")
        apply_pools(instance, pools)
        if gone := follow_source(instance, recipe):
            say(f"withdrawn, as the source has them no more: {', '.join(gone)}")
        for phase in phases_of(recipe, pools):
            try:
                for tags, chosen in launches(instance, recipe, phase, store):
                    outcome.dagster_runs.append(launch(instance, recipe, phase, chosen, tags, say))
            except RunFailed as failure:
                outcome.failure = str(failure)
                outcome.dagster_runs.append(failure.run_id)
                break
    outcome.seconds = time.monotonic() - began
    return outcome


def follow_source(instance: dg.DagsterInstance, recipe: Recipe) -> list[str]:
    """Makes the recipe's shards those of its source, however many that takes out; returns those withdrawn."""
    name = shards_definition(recipe.name).name
    assert name is not None
    store = ArtifactStore().open()
    wanted = list(Upstream(store, recipe.name).shards(recipe.preferences, recipe.seed))
    known = instance.get_dynamic_partitions(name)
    gone = sorted({*known, *store.read_refs(recipe.name, "preference_shard")} - set(wanted))
    drop(instance, store, recipe.name, gone)
    instance.add_dynamic_partitions(name, [shard for shard in wanted if shard not in set(known)])
    return gone
