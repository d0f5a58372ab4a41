"""The sensor that watches a recipe's preference source; it alone asks for shards."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import dagster as dg

from alignment.digest import json_digest
from alignment.errors import BadInput, be, counted, first_few
from alignment.recipe import Recipe
from alignment_dags.run.launch import RANGE_END, RANGE_START, step_failures, stretches
from alignment_dags.run.shards import NameTaken, claim, claim_partitions, drop
from alignment_dags.run.upgrade import ACCEPT, Upgrades, moved_stages
from alignment_dags.run.workers import UNFINISHED
from alignment_dags.run.workspace import Workspace, job_name
from alignment_dags.source.decide import Actions, Asked, Cursor, decide, read_cursor
from alignment_dags.source.observe import Seen, observe
from assets.building.factory import SHARDS_PER_RUN, shards_definition
from resources.alerts import Alert, send
from resources.store import ArtifactStore

SENSOR_NAME, RUN_KEY = "dagster/sensor_name", "dagster/run_key"


def sensor_name(recipe_name: str) -> str:
    """The name of the sensor that looks for the recipe's shards."""
    return f"{recipe_name}_source"


def build_sensor(workspace: Workspace, jobs: Iterable[dg.UnresolvedAssetJobDefinition]) -> dg.SensorDefinition:
    """`jobs` are the recipe's. The sensor runs by itself for recipes that have a schedule."""
    recipe = workspace.recipe
    job = next(job for job in jobs if job.name == job_name(recipe.name, "shards"))

    @dg.sensor(
        name=sensor_name(recipe.name),
        job=job,
        description=f"Follows the preference source of {recipe.name}: new, changed and vanished shards.",
        minimum_interval_seconds=recipe.preferences.watch_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING if recipe.schedule else dg.DefaultSensorStatus.STOPPED,
    )
    def source(context: dg.SensorEvaluationContext, store: ArtifactStore) -> dg.SensorResult:
        return watch(context.instance, replace(workspace, open_store=store.open), context.cursor)

    return source


def watch(instance: dg.DagsterInstance, workspace: Workspace, text: str | None) -> dg.SensorResult:
    """One tick: drops shards that the source has no more and asks for what is new or changed. `text` is the sensor's
    cursor."""
    recipe, store, upstream = workspace.recipe, workspace.store, workspace.upstream()
    cursor = read_cursor(text)
    (rows,) = workspace.phase("shards").nodes
    try:
        claim(store, recipe)
        claim_partitions(instance, recipe)
        seen = observe(recipe, rows, upstream)
    except BadInput as error:
        why = "is not followed" if isinstance(error, NameTaken) else "cannot be listed"
        reason = f"the source {why}, and no shard was left out: {error}"
        _alert(recipe, cursor, reason)
        alerted = cursor.model_copy(update={"alerted": reason})
        return dg.SensorResult(skip_reason=reason, cursor=alerted.model_dump_json())
    partitions = shards_definition(recipe.name)
    assert partitions.name is not None
    known = instance.get_dynamic_partitions(partitions.name)
    recorded = {shard: ref.artifact.key for shard, ref in upstream.refs("preference_shard").items()}
    ready = [shard for shard, key in seen.keys.items() if recorded.get(shard) == key]
    moved = Upgrades(store, recipe.name).waiting(moved_stages([rows], upstream, {rows.name: ready}))
    held = [shard for one in moved for shard in one.shards if shard in seen.keys]
    recorded |= {shard: seen.keys[shard] for shard in held}  # as if they were current: nothing is asked for them
    running = {run.tags[RUN_KEY] for run in _unfinished(instance, recipe) if RUN_KEY in run.tags}
    made = decide(seen, known, recorded, cursor.asked, running, {*upstream.withdrawn().shards, *seen.withdrawn})
    drop(instance, store, recipe.name, made.drop)
    dropped = set(made.drop)
    order = [*(name for name in known if name not in dropped), *made.add]
    requests, asked = _requests(made, seen, order, cursor)
    troubles = "; ".join(made.troubles)
    _alert(recipe, cursor, troubles)
    if made.given_up:
        why = _reasons(instance, [cursor.asked[shard].run_key for shard in made.given_up])
        text = f"failed and wait for a correction: {first_few(made.given_up)}{why}"
        send(recipe.alerts, Alert(recipe.name, "shard_failed", text))
    after = Cursor(
        observation=cursor.observation + bool(requests),
        asked={**made.asked, **asked},
        alerted=troubles,
    )
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else _nothing_to_do(seen, made, held),
        cursor=after.model_dump_json(),
        dynamic_partitions_requests=[partitions.build_add_request(made.add)] if made.add else [],
    )


def _unfinished(instance: dg.DagsterInstance, recipe: Recipe) -> list[dg.DagsterRun]:
    mine = dg.RunsFilter(tags={SENSOR_NAME: sensor_name(recipe.name)}, statuses=UNFINISHED)
    return list(instance.get_runs(mine))


def _reasons(instance: dg.DagsterInstance, run_keys: Iterable[str]) -> str:
    """Why the runs with these keys failed, as the end of a sentence; empty where Dagster keeps none of them."""
    reasons: dict[str, None] = {}
    for key in dict.fromkeys(run_keys):
        for run in instance.get_runs(dg.RunsFilter(tags={RUN_KEY: key}), limit=1):
            reasons |= dict.fromkeys(failure.reason for failure in step_failures(instance, run.run_id))
    return f" ({first_few(list(reasons), '; ')})" if reasons else ""


def _requests(
    made: Actions, seen: Seen, order: list[str], cursor: Cursor
) -> tuple[list[dg.RunRequest], Mapping[str, Asked]]:
    """A run for every stretch of shards that Dagster has side by side, and what was asked with it."""
    requests: list[dg.RunRequest] = []
    asked: dict[str, Asked] = {}
    place = {shard: index for index, shard in enumerate(order)}
    for first, last in stretches(order, set(made.ask), SHARDS_PER_RUN):
        shards = order[place[first] : place[last] + 1]
        keys = {shard: seen.keys[shard] for shard in shards}
        name = first if first == last else f"{first}..{last}"
        run_key = f"{name}:{json_digest(keys)[:16]}:{cursor.observation}"
        for shard, key in keys.items():
            before = cursor.asked.get(shard)
            tries = before.tries + 1 if before is not None and before.key == key else 1
            asked[shard] = Asked(key=key, run_key=run_key, tries=tries)
        if first == last:
            requests.append(dg.RunRequest(run_key=run_key, partition_key=first))
        else:
            requests.append(dg.RunRequest(run_key=run_key, tags={RANGE_START: first, RANGE_END: last}))
    return requests, asked


def _nothing_to_do(seen: Seen, made: Actions, held: Collection[str]) -> str:
    parts = [
        f"{counted(len(seen.keys) - len(made.asked) - len(held), 'shard is', 'shards are')} current",
        f"{len(held)} {be(len(held))} of an older code version and {'waits' if len(held) == 1 else 'wait'} for {ACCEPT}"
        if held
        else "",
        f"{counted(len(made.asked), 'was', 'were')} asked for" if made.asked else "",
        f"{counted(len(seen.waiting), 'waits', 'wait')} ({', '.join(sorted(set(seen.waiting.values())))})"
        if seen.waiting
        else "",
        f"left out: {first_few(made.drop)}" if made.drop else "",
        f"withdrawn until restored: {first_few(sorted(seen.withdrawn.values()), '; ')}" if seen.withdrawn else "",
        *made.troubles,
    ]
    return "; ".join(part for part in parts if part)


def _alert(recipe: Recipe, cursor: Cursor, trouble: str) -> None:
    """Tells people of trouble once, until it is another or over."""
    if trouble and trouble != cursor.alerted:
        send(recipe.alerts, Alert(recipe.name, "source", trouble))
