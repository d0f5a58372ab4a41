"""One night of the recipe in this folder, carried out now: what Dagster's schedule and sensor do, step by step.

The schedule records the night. Then the sensor looks again and again: `tick` decides the next step, and its runs are
executed here, in this process. Two minutes of waiting for other makers of shards are skipped.
"""

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
from transformers.utils.logging import disable_progress_bar

from alignment_dags.definitions import build_definitions
from alignment_dags.nights.decide import GRACE
from alignment_dags.nights.night import Night
from alignment_dags.nights.records import NightBook
from alignment_dags.nights.tick import tick
from alignment_dags.run.workspace import use_recipe
from assets.building.factory import shards_definition

disable_progress_bar()
workspace = use_recipe(Path("a_night.yaml"))
recipe = workspace.recipe
book = NightBook(workspace.store, recipe.name)
now = datetime.now(UTC)
book.add(Night(recipe=recipe.name, scheduled_at=now, recorded_at=now, deadline_minutes=60))

with dg.DagsterInstance.get() as instance:
    definitions = build_definitions([recipe])
    idle_since = None
    while book.open_nights():
        workspace = use_recipe(Path("a_night.yaml"))
        done = tick(instance, workspace, now, idle_since)
        print(done.reason, flush=True)
        if done.idle:
            idle_since, now = now, now + GRACE
            continue
        instance.add_dynamic_partitions(str(shards_definition(recipe.name).name), list(done.new_shards))
        for request in done.requests:
            definitions.resolve_job_def(str(request.job_name)).execute_in_process(
                instance=instance,
                asset_selection=list(request.asset_selection or ()),
                tags=dict(request.tags),
                raise_on_error=False,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
