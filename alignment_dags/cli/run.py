"""Verbs that bring a recipe up to date and show its nights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignment.errors import BadInput
from alignment_dags.cli.arguments import RecipeFile, RecipeFiles
from alignment_dags.cli.output import AsJson, columns, say, tell
from alignment_dags.cli.stopping import INTERRUPTED, nothing_to_add

if TYPE_CHECKING:
    from alignment_dags.planner.forecast import StageForecast
    from alignment_dags.run.upgrade import Moved
    from alignment_dags.run.workspace import Workspace

# The output of `align plan`: one line for each stage, and below it how each number was computed.

NO_PRICE = "its pool names no price"
NUMBERS = {"memory_gib": "memory", "slot_seconds": "time", "cost": "cost"}


def show_plan(result: dict[str, Any]) -> None:
    """Prints a plan as a table, and below it how each number was computed."""
    rows = [
        (
            stage["stage"],
            stage["pool"] or "-",
            _count(stage["current"]),
            _count(stage["to_make"]),
            _memory(stage),
            "-" if stage["pool"] is None else {True: "yes", False: "NO", None: "unknown"}[stage["fits"]],
            _figure(stage, "slot_seconds", "{:.0f} s"),
            _figure(stage, "cost", "{:.2f}"),
        )
        for stage in result["stages"]
    ]
    print(columns(("stage", "pool", "there", "to make", "memory a device", "fits", "time", "cost"), rows))
    needed = [stage for stage in result["stages"] if stage["to_make"] != 0]
    for name, words in NUMBERS.items():  # each sentence once, with the stages that it is about
        stages: dict[str, list[str]] = {}
        for stage in needed if name == "slot_seconds" else [one for one in needed if one["pool"] is not None]:
            stages.setdefault(stage[name]["how"], []).append(stage["stage"])
        if stages:
            print(f"{words}:")
        for how, named in stages.items():
            print(f"  {', '.join(named)}: {how}")
    for stage in result["stages"]:
        if stage["taken"]:
            print(_taken(stage["stage"], stage["taken"]))
    for warning in result["warnings"]:
        print(f"warning: {warning}")
    for note in result["notes"]:
        print(f"note: {note}")
    for name in result["too_large"]:
        print(f"{name} does not fit the devices of its pool")
        stage = next(stage for stage in result["stages"] if stage["stage"] == name)
        for remedy in stage["remedies"]:
            over = f" on each of {remedy['devices']} devices" if remedy["devices"] > 1 else ""
            print(f"  it would with {' and '.join(remedy['changes'])}: {remedy['memory_gib']:.1f} GiB{over}")
    show_upgrade(result["upgrade"])


def _taken(stage: str, taken: dict[str, float]) -> str:
    """What a stage that is there took, and what a plan computes for it."""
    forms: dict[str, Callable[[float], str]] = {
        "gpu_seconds": "{:,.0f} GPU-seconds".format,
        "cost_usd": "{:.2f} USD".format,
        "peak_memory_gib": lambda peak: f"at most {_size(peak)}",
    }
    planned: dict[str, Callable[[float], str]] = {"computed_seconds": "{:,.0f} s".format, "memory_gib": _size}
    took = [form(taken[name]) for name, form in forms.items() if taken.get(name)]
    computed = [form(taken[name]) for name, form in planned.items() if name in taken]
    beside = f"; computed: {', '.join(computed)}" if computed else ""
    seconds = f"{taken['seconds']:,.1f} s"
    return f"{stage} took {', '.join([seconds, *took])}{beside}"


def _count(number: int | None) -> str:
    return "unknown" if number is None else str(number)


def _memory(stage: dict[str, Any]) -> str:
    gib = stage["memory_gib"]["value"]
    if gib == 0:
        return "-"
    return _figure(stage, "memory_gib", "{}") if gib is None else _size(gib)


def _size(gib: float) -> str:
    return f"{gib * 1024:.1f} MiB" if gib < 1 else f"{gib:.1f} GiB"


def _figure(stage: dict[str, Any], name: str, form: str) -> str:
    value = stage[name]["value"]
    if value is not None:
        return form.format(value)
    nothing = (stage["pool"] is None and name != "slot_seconds") or stage[name]["how"] == NO_PRICE
    return "-" if nothing else "unknown"


# The stages that a new version makes again, for `align plan` and `align upgrade`.


def upgrade_of(workspace: Workspace, moved: Sequence[Moved], stages: Sequence[StageForecast]) -> dict[str, Any] | None:
    """The stages that this version makes again, with their forecast, and whether a person accepted it; None without."""
    from alignment_dags.run.upgrade import Upgrades

    if not moved:
        return None
    upgrades = Upgrades(workspace.store, workspace.recipe.name)
    accepted = upgrades.accepted
    forecasts = {forecast.stage: forecast for forecast in stages}
    return {
        "recipe": workspace.recipe.name,
        "stages": [
            {
                "stage": change.stage,
                "old_code_version": change.old,
                "code_version": change.new,
                "version": change.version,
                "artifacts": change.artifacts,
                "pool": forecasts[change.stage].pool,
                "slot_seconds": asdict(forecasts[change.stage].slot_seconds),
                "cost": asdict(forecasts[change.stage].cost),
            }
            for change in moved
        ],
        "waits": bool(upgrades.waiting(moved)),
        "accepted": None if accepted is None else accepted.model_dump(mode="json"),
    }


def show_upgrade(result: dict[str, Any] | None) -> None:
    """Prints the stages that this version makes again, and whether a person accepted it; nothing for None."""
    if result is None:
        return
    print(f"{result['recipe']}: this version makes anew (docs/upgrading.md says why):")
    rows = [
        (
            f"  {stage['stage']}",
            f"{stage['version'] if stage['version'] != 'code version' else ''} "
            f"{stage['old_code_version']} → {stage['code_version']}".strip(),
            str(stage["artifacts"]),
            _figure(stage, "slot_seconds", "{:.0f} s"),
            _figure(stage, "cost", "{:.2f}"),
        )
        for stage in result["stages"]
    ]
    print(columns(("  stage", "code version", "artifacts", "time", "cost"), rows))
    print("  Later stages are made anew only if these results differ.")
    if result["waits"]:
        print("  Nights and the source sensor wait for `align upgrade RECIPE --accept`; `align run` does not.")
    else:
        print(f"  Accepted by {result['accepted']['by']} at {result['accepted']['at']}: nights make it.")


def show_upgrades(result: dict[str, Any]) -> None:
    """Prints the outcome of `align upgrade`, recipe by recipe."""
    for name, upgrade in result["recipes"].items():
        if upgrade is None:
            print(f"{name}: nothing is of an older code version")
        show_upgrade(upgrade)


MOST_NIGHTS = 100_000


def run(
    recipe: RecipeFile,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, such as dpo.beta=0.5: another value of a key; repeat for more."),
    ] = None,
    name: Annotated[str | None, typer.Option("--as", help="Name of the recipe that is derived with --set.")] = None,
    as_json: AsJson = False,
) -> None:
    """Bring a recipe up to date: what changed is made again, and no more."""
    from alignment_dags.cli.outcome import show_outcome, summary_of
    from alignment_dags.recipes import derive
    from alignment_dags.run.run import run_recipe

    if (changes is None) != (name is None):
        raise BadInput("--set and --as go together: a recipe with other values is another recipe, with its own name")
    path = recipe if name is None else derive(recipe, changes or [], name)
    if name is not None:
        say(f"{name}: {path}")
    result = tell(lambda: summary_of(run_recipe(path, say)), as_json, show_outcome)
    if result["stopped"] is not None:
        nothing_to_add()
        sys.exit(INTERRUPTED)  # not typer.Exit, which typer makes of a KeyboardInterrupt
    if result["failure"] is not None:
        raise typer.Exit(1)


def plan(
    recipe: RecipeFile,
    config: Annotated[
        Path | None, typer.Option(help="The model's config.json, if it is not on this machine; no weights are needed.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(help="Rows of the preferences, where nothing here says how many they are.", min=1)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what bringing a recipe up to date takes, before anything runs. Exit 1 if a pool cannot hold it."""
    from datetime import date

    from alignment.recipe import load_recipe
    from alignment_dags.check import check_models, check_suites, not_there_yet
    from alignment_dags.planner.forecast import forecast
    from alignment_dags.retention.withdraw import withdrawn_elsewhere
    from alignment_dags.run.upgrade import moved_stages
    from alignment_dags.run.workspace import Workspace
    from assets.evaluation_report import gate_and_baselines
    from assets.policy_checkpoint import setup_of
    from eval.gate.default import left_out_of_default
    from eval.judge.retirement import retirement
    from resources.home import ensure_home
    from resources.pools import load_pools

    ensure_home()

    def work() -> dict[str, Any]:
        known = load_recipe(recipe)
        gate_and_baselines(known, str(recipe))
        check_models(known, str(recipe), config)
        check_suites(known, str(recipe))
        workspace = Workspace(known, load_pools())
        stages = forecast(workspace, config, rows)
        too_large = [expected.stage for expected in stages if expected.fits is False and expected.to_make != 0]
        warnings = [*not_there_yet(known, workspace.pools), *filter(None, [retirement(known.judge, date.today())])]
        return {
            "stages": [asdict(expected) for expected in stages],
            "too_large": too_large,
            "warnings": warnings,
            "notes": [
                *known.notes(),
                *left_out_of_default(known),
                *setup_of(known, workspace.upstream()),
                *withdrawn_elsewhere(workspace.store, known.name),
            ],
            "upgrade": upgrade_of(workspace, moved_stages(workspace.nodes, workspace.upstream()), stages),
        }

    if tell(work, as_json, show_plan)["too_large"]:
        raise typer.Exit(1)


def upgrade(
    recipes: RecipeFiles = None,
    accept: Annotated[bool, typer.Option("--accept", help="Let nights and the source sensor make it.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the stages that this version makes again, and accept them. Exit 1 if it waits for acceptance."""
    import getpass
    from datetime import UTC, datetime

    from alignment.recipe import load_recipe
    from alignment_dags.planner.forecast import forecast
    from alignment_dags.recipes import recipes_in_use
    from alignment_dags.run.upgrade import Upgrades, moved_stages
    from alignment_dags.run.workspace import Workspace
    from resources.home import ensure_home
    from resources.pools import load_pools

    ensure_home()

    def work() -> dict[str, Any]:
        pools = load_pools()
        chosen = [load_recipe(path) for path in recipes] if recipes else list(recipes_in_use().values())
        workspaces = [Workspace(recipe, pools) for recipe in chosen]
        moved = {space.recipe.name: moved_stages(space.nodes, space.upstream()) for space in workspaces}
        upgrades = {}
        for space in workspaces:
            name = space.recipe.name
            upgrades[name] = upgrade_of(space, moved[name], forecast(space) if moved[name] else ())
        for space in workspaces if accept else ():  # after all recipes were read, so that an error accepts nothing
            name = space.recipe.name
            if (entry := upgrades[name]) is not None and entry["waits"]:
                accepted = Upgrades(space.store, name).accept(moved[name], getpass.getuser(), datetime.now(UTC))
                entry |= {"waits": False, "accepted": accepted.model_dump(mode="json")}
        return {"recipes": upgrades}

    upgrades = tell(work, as_json, show_upgrades)["recipes"]
    if any(entry is not None and entry["waits"] for entry in upgrades.values()):
        raise typer.Exit(1)


def backfill(
    recipe: RecipeFile,
    shards: Annotated[str | None, typer.Option(help="Names, with commas between; all shards by default.")] = None,
    first: Annotated[str | None, typer.Option("--from", help="First shard of a stretch (source order).")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last shard of the stretch.")] = None,
    stage: Annotated[str | None, typer.Option(help="preference_shard or reference_logprobs; both by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make any set of shards that are behind: safe to repeat, to interrupt, and to run beside the night."""
    from alignment_dags.cli.output import show_backfill
    from alignment_dags.run.run import Chosen, run_backfill

    names = tuple(name.strip() for name in shards.split(",") if name.strip()) if shards is not None else None
    if names == ():
        raise BadInput("no shard is named", field="--shards")
    result = tell(lambda: vars(run_backfill(recipe, Chosen(names, first, last), stage, say)), as_json, show_backfill)
    if result["failures"]:
        raise typer.Exit(1)


def night(recipe: RecipeFile, as_json: AsJson = False) -> None:
    """Carry out a night of the recipe now, without Dagster's daemon. Exit 1 if it failed or the gate said no."""
    from alignment.recipe import load_recipe
    from alignment_dags.cli.output import show_nights
    from alignment_dags.nights.now import hold_night
    from alignment_dags.nights.records import latest_nights
    from resources.home import ensure_home
    from resources.store import ArtifactStore

    ensure_home()

    def work() -> dict[str, Any]:
        held = hold_night(recipe, say)
        return latest_nights(ArtifactStore().open(), load_recipe(recipe), len(held), held)

    if any(one["outcome"] in ("gated", "failed", "missed") for one in tell(work, as_json, show_nights)["nights"]):
        raise typer.Exit(1)


def nights(
    recipe: RecipeFile,
    last: Annotated[int, typer.Option(help="How many, the latest first.", min=1, max=MOST_NIGHTS)] = 10,
    as_json: AsJson = False,
) -> None:
    """Show the recipe's latest nights: what came of each, and why."""
    from alignment.recipe import load_recipe
    from alignment_dags.cli.output import show_nights
    from alignment_dags.nights.records import latest_nights
    from resources.home import ensure_home
    from resources.store import ArtifactStore

    ensure_home()
    tell(lambda: latest_nights(ArtifactStore().open(), load_recipe(recipe), last), as_json, show_nights)
