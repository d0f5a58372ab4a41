"""Everything Dagster loads: the assets and jobs of every recipe, and the resources they hold."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

from alignment.recipe import Recipe
from alignment_dags.nights.definitions import night_definitions
from alignment_dags.recipes import recipes_in_use
from alignment_dags.run.workspace import Phase, Workspace, job_name
from alignment_dags.source.sensor import build_sensor
from alignment_dags.step_processes import step_processes
from assets.building.factory import asset_key, asset_resources, build_asset
from resources.compute import ComputePools
from resources.databases import prepare_libraries
from resources.home import ensure_home
from resources.pools import Pools

PACKAGES = ["torch", "transformers", "trl", "datasets", "mlflow", "alignment_dags.definitions"]
PRELOADED = [*PACKAGES, "alignment_dags.preloaded"]
STEPS_AT_ONCE = 2
"""Steps of a run at once where no pool has more slots."""


def step_executor(recipes: Iterable[Recipe], pools: Pools) -> dg.ExecutorDefinition:
    """Each step in a process of its own, forked from a server that has imported the heavy packages once.

    As many at once as the largest pool in use has slots, and one that needs none.
    """
    used = {name for recipe in recipes for name in recipe.pools.model_dump().values()}
    most = max((pools.pools[name].slots for name in used if name in pools.pools), default=0)
    return step_processes.configured(
        {
            "max_concurrent": max(STEPS_AT_ONCE, most + 1),
            "start_method": {"forkserver": {"preload_modules": PRELOADED}},
        },
        name="processes",
    )


def job_of(recipe: Recipe, phase: Phase) -> dg.UnresolvedAssetJobDefinition:
    """The job that materialises the nodes of a phase."""
    return dg.define_asset_job(
        job_name(recipe.name, phase.name),
        selection=[asset_key(recipe.name, node.name) for node in phase.nodes],
        description=f"The {phase.name} phase of {recipe.name}.",
        tags={"recipe": recipe.name},
    )


def jobs_of(workspace: Workspace) -> list[dg.UnresolvedAssetJobDefinition]:
    """A job a phase."""
    return [job_of(workspace.recipe, phase) for phase in workspace.phases]


def automation_sensor(recipes: Iterable[Recipe]) -> dg.AutomationConditionSensorDefinition:
    """Evaluates the conditions that nodes declare, as often as the most eager recipe watches its source."""
    return dg.AutomationConditionSensorDefinition(
        "automation",
        target=dg.AssetSelection.all(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=min((recipe.preferences.watch_seconds for recipe in recipes), default=None),
    )


def build_definitions(recipes: Iterable[Recipe], compute: ComputePools | None = None) -> dg.Definitions:
    """Assets, jobs, schedules and sensors of these recipes.

    A deployment with pools of its own gives its `ComputePools` here, in a module of its own.
    """
    compute = compute or ComputePools()
    pools = compute.load()
    workspaces = [Workspace(recipe, pools) for recipe in recipes]
    jobs = {one.recipe.name: jobs_of(one) for one in workspaces}
    nights = [night_definitions(one, jobs[one.recipe.name]) for one in workspaces if one.recipe.schedule is not None]
    return dg.Definitions(
        assets=[build_asset(node, one.recipe, pools) for one in workspaces for node in one.nodes],
        jobs=[job for phases in jobs.values() for job in phases],
        schedules=[schedule for schedule, _ in nights],
        sensors=[
            *(build_sensor(one, jobs[one.recipe.name]) for one in workspaces),
            automation_sensor(one.recipe for one in workspaces),
            *(sensor for _, sensor in nights),
        ],
        resources=asset_resources(compute),
        executor=step_executor((one.recipe for one in workspaces), pools),
    )


def return_definitions(recipe_name: str) -> dg.Definitions:
    """A recipe's return to an earlier version, which `align promote` carries out; a pool belongs to an asset and
    not to its run, so the asset without one stands here, apart from what Dagster shows."""
    recipe = next(recipe for recipe in recipes_in_use().values() if recipe.name == recipe_name)
    compute = ComputePools()
    workspace = Workspace(recipe, compute.load())
    phase = workspace.return_phase
    return dg.Definitions(
        assets=[build_asset(node, recipe, workspace.pools) for node in phase.nodes],
        jobs=[job_of(recipe, phase)],
        resources=asset_resources(compute),
        executor=step_executor([recipe], workspace.pools),
    )


ensure_home()
prepare_libraries()
defs = build_definitions(recipes_in_use().values())
