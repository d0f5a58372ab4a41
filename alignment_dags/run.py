"""`align run`: brings a recipe up to date, phase by phase, and says what came of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg

from alignment.artifacts import Store
from alignment.errors import BadInput
from alignment.preferences.shards import shards_of
from alignment.recipe import Recipe, load_recipe
from alignment_dags.dead_runs import end_dead_runs, process_tags
from alignment_dags.limits import apply_pools
from alignment_dags.phases import Phase, phases_of
from alignment_dags.plan import Planned, plan
from alignment_dags.progress import Progress
from alignment_dags.recipes import RECIPES
from assets.factory import BAD_INPUT, asset_key, shards_definition
from assets.graph import nodes_of
from resources.home import ensure_home
from resources.pools import load_pools
from resources.store import ArtifactStore

RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


class RunFailed(RuntimeError):
    """A Dagster run failed; the message has a line for every step that did."""


@dataclass
class Outcome:
    """What `align run` did: the Dagster runs it made, and whether anything was out of date."""

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
    plan(recipe, nodes_of(recipe, pools), store)  # what a person has to mend shows before anything starts
    with dg.DagsterInstance.get() as instance:
        outcome.ended_runs = end_dead_runs(instance)
        for run_id in outcome.ended_runs:
            say(f"ended run {run_id[:8]}: its process is gone")
        apply_pools(instance, pools)
        follow_source(instance, recipe)
        for phase in phases_of(recipe, pools):
            try:
                for tags, chosen in launches(instance, recipe, phase, store):
                    outcome.dagster_runs.append(launch(instance, recipe, phase, chosen, tags, say))
            except RunFailed as failure:
                outcome.failure = str(failure)
                break
    outcome.seconds = time.monotonic() - began
    return outcome


def follow_source(instance: dg.DagsterInstance, recipe: Recipe) -> None:
    """Makes the recipe's partitions those of its source."""
    name = shards_definition(recipe.name).name
    assert name is not None
    wanted, known = list(shards_of(recipe.preferences, recipe.seed)), instance.get_dynamic_partitions(name)
    for gone in set(known) - set(wanted):
        instance.delete_dynamic_partition(name, gone)
    instance.add_dynamic_partitions(name, [shard for shard in wanted if shard not in known])


def launches(
    instance: dg.DagsterInstance, recipe: Recipe, phase: Phase, store: Store
) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Tags and node names of each Dagster run the phase needs now: one, or one a stretch of shards."""
    planned = plan(recipe, nodes_of(recipe, load_pools()), store)
    names = {node.name for node in phase.nodes}
    behind = [one for one in planned if one.node.name in names and one.state != "current"]
    if not behind:
        return
    if not phase.partitioned:
        yield {}, list(dict.fromkeys(one.node.name for one in behind))
        return
    name = shards_definition(recipe.name).name
    assert name is not None
    for first, last in stretches(instance.get_dynamic_partitions(name), behind):
        yield {RANGE_START: first, RANGE_END: last}, [phase.nodes[0].name]


def stretches(order: list[str], behind: list[Planned]) -> Iterator[tuple[str, str]]:
    """First and last shard of every unbroken stretch, in Dagster's order, of shards that are behind."""
    wanted = {one.shard for one in behind}
    stretch: list[str] = []
    for shard in order:
        if shard in wanted:
            stretch.append(shard)
        elif stretch:
            yield stretch[0], stretch[-1]
            stretch = []
    if stretch:
        yield stretch[0], stretch[-1]


def launch(
    instance: dg.DagsterInstance,
    recipe: Recipe,
    phase: Phase,
    chosen: list[str],
    tags: dict[str, str],
    say: Callable[[str], None],
) -> str:
    """Executes one Dagster run over the chosen nodes and returns its id; raises `RunFailed` or `BadInput`."""
    from alignment_dags.jobs import load_job

    job = dg.build_reconstructable_job(
        "alignment_dags.jobs", "load_job", reconstructable_args=(recipe.name, phase.name)
    )
    assert load_job
    with Progress(instance, phase.name, say) as progress:
        result = dg.execute_job(
            job,
            instance,
            asset_selection=[asset_key(recipe.name, name) for name in chosen],
            tags={**process_tags(), **progress.tags, **tags},
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
    if result.success:
        return result.run_id
    raise_failure(instance, result.run_id)
    raise AssertionError("unreachable")


def raise_failure(instance: dg.DagsterInstance, run_id: str) -> None:
    """Raises `BadInput` if every failed step says a person has to mend its input, else `RunFailed`."""
    lines: list[str] = []
    bad: list[str] = []
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        event = entry.dagster_event
        assert event is not None
        data = event.step_failure_data
        failure = data.user_failure_data
        told = failure.description if failure else None
        if told is None and data.error is not None:
            told = (data.error.cause or data.error).message.strip()
        lines.append(f"{event.step_key}: {told}")
        if failure and BAD_INPUT in failure.metadata:
            bad.append(str(failure.metadata[BAD_INPUT].value))
    if bad and len(bad) == len(lines):
        raise BadInput("; ".join(bad))
    raise RunFailed("\n".join(lines) or f"Dagster run {run_id} failed before any step")
