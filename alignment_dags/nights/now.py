"""`align night`: a night of a recipe carried out now, by this command instead of Dagster's daemon.

The schedule's part is to record the night, and the sensor's to look again and again: `tick` decides each step, and its
Dagster runs are executed here. So a night under cron, in CI or by hand decides as every other night does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
from filelock import FileLock, Timeout

from alignment.errors import BadInput
from alignment_dags.nights.decide import GRACE
from alignment_dags.nights.night import Night
from alignment_dags.nights.records import NightBook
from alignment_dags.nights.tick import tick
from alignment_dags.recipes import remember
from alignment_dags.run.launch import NO_RETRY, Progress, execute
from alignment_dags.run.upgrade import ACCEPT
from alignment_dags.run.workers import apply_pools, end_dead_runs, process_tags
from alignment_dags.run.workspace import use_recipe
from assets.building.factory import shards_definition
from resources.databases import dagster_instance
from resources.home import align_home

HEARTBEAT = 90.0
"""Seconds after which Dagster's daemon counts as gone."""
PAUSE = 5.0
"""Seconds between two looks while the night waits, as for a file that was just written."""


def hold_night(path: Path, say: Callable[[str], None]) -> set[str]:
    """Records a night and carries it out to its end, whatever that is; returns the ids of the nights carried out.

    There are two where one had begun and was interrupted: it is carried out first, and tonight's sees what is new
    since. One that waited and had not begun is missed. Nobody is waited for who may be making shards: no daemon runs,
    and another command would hold the shard. Raises `BadInput` for a recipe without a schedule, while a daemon or
    another such command carries out the nights, and where the night waits for a person's acceptance of an upgrade; it
    then stays open.
    """
    workspace = use_recipe(path)
    recipe = workspace.recipe
    if recipe.schedule is None:
        problem = f"has no schedule, so no nights; `align run {path}` brings it up to date"
        raise BadInput(problem, file=str(path), field="schedule")
    remember(path, recipe)
    book, now = NightBook(workspace.store, recipe.name), datetime.now(UTC)
    with _alone(recipe.name), dagster_instance() as instance:
        _refuse_a_daemon(instance)
        begun = [night for night in book.open_nights() if night.outcome == "running"]
        for night in begun[::-1]:
            say(f"the {night.told} was interrupted, and is carried out first")
        minutes = recipe.schedule.deadline_minutes
        tonight = Night(recipe=recipe.name, scheduled_at=now, recorded_at=now, deadline_minutes=minutes)
        book.add(tonight)
        end_dead_runs(instance)
        apply_pools(instance, workspace.pools)
        idle_since: datetime | None = None
        while book.open_nights():
            done = tick(instance, use_recipe(path), datetime.now(UTC), idle_since)
            say(done.reason)
            idle_since = datetime.now(UTC) - GRACE if done.idle else None
            if done.new_shards:
                name = str(shards_definition(recipe.name).name)
                instance.add_dynamic_partitions(name, list(done.new_shards))
            for request in done.requests:
                _run(instance, recipe.name, request, say)
            if not (done.requests or done.new_shards or done.idle) and book.open_nights():
                if ACCEPT in done.reason:
                    raise BadInput(f"the night {done.reason}", file=str(path))
                time.sleep(PAUSE)
    return {night.id for night in (*begun, tonight)}


@contextmanager
def _alone(recipe: str) -> Iterator[None]:
    """Raises `BadInput` while another command on this machine carries out the recipe's nights."""
    try:
        with FileLock(align_home() / f"night-{recipe}.lock", timeout=0):
            yield
    except Timeout as error:
        raise BadInput(f"another `align night` carries out the nights of {recipe}") from error


def _run(instance: dg.DagsterInstance, recipe: str, request: dg.RunRequest, say: Callable[[str], None]) -> None:
    """Executes one Dagster run of the night. How it ended, the next look reads from Dagster."""
    phase = str(request.job_name).removeprefix(f"{recipe}_")
    named = {"recipe_name": recipe, "phase_name": phase}
    job = dg.build_reconstructable_job("alignment_dags.jobs", "load_job", reconstructable_kwargs=named)
    with Progress(instance, phase, say) as progress:
        tags = {**process_tags(), **progress.tags, **NO_RETRY, **request.tags}
        execute(instance, job, list(request.asset_selection or ()), tags)


def _refuse_a_daemon(instance: dg.DagsterInstance) -> None:
    beats = instance.get_daemon_heartbeats().values()
    if any(time.time() - beat.timestamp < HEARTBEAT for beat in beats):
        problem = "Dagster's daemon is running, and carries out the nights by itself"
        raise BadInput(f"{problem}: start the recipe's schedule in its pages, or stop it (`make ui`) first")
