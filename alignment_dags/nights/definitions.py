"""The schedule and the sensor of a recipe's nights, as Dagster shows and runs them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import dagster as dg

from alignment.errors import BadInput
from alignment_dags.nights.cost import hourly_prices
from alignment_dags.nights.night import Night
from alignment_dags.nights.records import NightBook
from alignment_dags.nights.tick import tick
from alignment_dags.run.workspace import Workspace
from assets.building.factory import shards_definition

IDLE_SINCE = "idle_since"  # in the sensor's cursor, so that it outlives a night that another night follows


def schedule_name(recipe_name: str) -> str:
    """The name of the recipe's schedule in Dagster."""
    return f"{recipe_name}_night"


def sensor_name(recipe_name: str) -> str:
    """The name of the sensor that carries the recipe's nights on."""
    return f"{recipe_name}_night_sensor"


def night_definitions(
    workspace: Workspace, jobs: Sequence[dg.UnresolvedAssetJobDefinition]
) -> tuple[dg.ScheduleDefinition, dg.SensorDefinition]:
    """The schedule that records a night and the sensor that carries it out; `jobs` are the recipe's, by phase."""
    recipe = workspace.recipe
    settings = recipe.schedule
    assert settings is not None
    deadline = settings.deadline_minutes
    if settings.max_cost is not None and not any(hourly_prices(workspace).values()):
        problem = "no pool of this recipe names a price_per_hour in pools.yaml, so that no cost is ever known"
        raise BadInput(problem, file=recipe.name, field="schedule.max_cost")

    def record(context: dg.ScheduleEvaluationContext) -> dg.SkipReason:
        night = Night(
            recipe=recipe.name,
            scheduled_at=context.scheduled_execution_time.astimezone(UTC),
            recorded_at=datetime.now(UTC),
            deadline_minutes=deadline,
        )
        NightBook(replace(workspace).store, recipe.name).add(night)
        return dg.SkipReason(
            f"{night.told} recorded; {sensor_name(recipe.name)} launches it when the shards are complete, "
            f"and after {deadline} minutes with what is"
        )

    schedule = dg.ScheduleDefinition(
        name=schedule_name(recipe.name),
        job=jobs[-1],
        cron_schedule=settings.cron,
        execution_timezone=settings.timezone,
        execution_fn=record,
        description=f"Records that {recipe.name} is due for its night.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )

    def follow(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        now = datetime.now(UTC)
        idle_since = read_cursor(context.cursor)
        done = tick(context.instance, replace(workspace), now, idle_since)
        cursor = json.dumps({IDLE_SINCE: (idle_since or now).isoformat()} if done.idle else {})
        new = [shards_definition(recipe.name).build_add_request(list(done.new_shards))] if done.new_shards else None
        return dg.SensorResult(
            run_requests=list(done.requests),
            skip_reason=None if done.requests else dg.SkipReason(done.reason),
            cursor=cursor,
            dynamic_partitions_requests=new,
        )

    sensor = dg.SensorDefinition(
        name=sensor_name(recipe.name),
        jobs=jobs,
        evaluation_fn=follow,
        minimum_interval_seconds=recipe.preferences.watch_seconds,
        description=f"Carries out the nights of {recipe.name}: what is behind, phase by phase, and what came of it.",
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    return schedule, sensor


def read_cursor(cursor: str | None) -> datetime | None:
    """Since when the recipe has been idle, None if it was not."""
    since = json.loads(cursor or "{}").get(IDLE_SINCE)
    return None if since is None else datetime.fromisoformat(since)
