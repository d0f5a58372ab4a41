"""Verbs that bring a recipe up to date, and show what its nights did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignment.errors import BadInput
from alignment_dags.cli.output import AsJson, columns, say, tell

if TYPE_CHECKING:
    from alignment_dags.planner.forecast import StageForecast
    from alignment_dags.run.upgrade import Moved
    from alignment_dags.run.workspace import Workspace

# What `align plan` shows a person: a line a stage, and below it how each number was reached.

NUMBERS = {"memory_gib": "memory", "slot_seconds": "time", "cost": "cost"}


def show_plan(result: dict[str, Any]) -> None:
    rows = [
        (
            one["stage"],
            one["pool"] or "-",
            _count(one["current"]),
            _count(one["to_make"]),
            _memory(one),
            "-" if one["pool"] is None else {True: "yes", False: "NO", None: "unknown"}[one["fits"]],
            _told(one, "slot_seconds", "{:.0f} s"),
            _told(one, "cost", "{:.2f}"),
        )
        for one in result["stages"]
    ]
    print(columns(("stage", "pool", "there", "to make", "memory a device", "fits", "time", "cost"), rows))
    for one in result["stages"]:
        if one["pool"] is not None and one["to_make"] != 0:
            print(f"{one['stage']}:")
            for name, words in NUMBERS.items():
                print(f"  {words}: {one[name]['how']}")
    for told in result["warnings"]:
        print(f"warning: {told}")
    for note in result["notes"]:
        print(f"note: {note}")
    for stage in result["too_large"]:
        print(f"{stage} does not fit the devices of its pool")
    show_upgrade(result["upgrade"])


def _count(number: int | None) -> str:
    return "unknown" if number is None else str(number)


def _memory(one: dict[str, Any]) -> str:
    gib = one["memory_gib"]["value"]
    if gib == 0:
        return "-"
    small = gib is not None and gib < 1
    return f"{gib * 1024:.1f} MiB" if small else _told(one, "memory_gib", "{:.1f} GiB")


def _told(one: dict[str, Any], name: str, form: str) -> str:
    value = one[name]["value"]
    if value is not None:
        return form.format(value)
    return "-" if one["pool"] is None and name != "slot_seconds" else "unknown"


# What a version makes anew, in `align plan` and `align upgrade`.


def upgrade_of(workspace: Workspace, moved: Sequence[Moved], stages: Sequence[StageForecast]) -> dict[str, Any] | None:
    """What this version makes anew, with the plan's forecast, and whether somebody accepted it; None for nothing."""
    from alignment_dags.run.upgrade import Upgrades

    if not moved:
        return None
    upgrades = Upgrades(workspace.store, workspace.recipe.name)
    accepted = upgrades.accepted
    takes = {one.stage: one for one in stages}
    return {
        "recipe": workspace.recipe.name,
        "stages": [
            {
                "stage": one.stage,
                "old_code_version": one.old,
                "code_version": one.new,
                "artifacts": one.artifacts,
                "pool": takes[one.stage].pool,
                "slot_seconds": asdict(takes[one.stage].slot_seconds),
                "cost": asdict(takes[one.stage].cost),
            }
            for one in moved
        ],
        "waits": bool(upgrades.waiting(moved)),
        "accepted": None if accepted is None else accepted.model_dump(mode="json"),
    }


def show_upgrade(result: dict[str, Any] | None) -> None:
    if result is None:
        return
    print(f"{result['recipe']}: this version makes anew (docs/upgrading.md says why):")
    rows = [
        (
            f"  {one['stage']}",
            f"{one['old_code_version']} → {one['code_version']}",
            str(one["artifacts"]),
            _told(one, "slot_seconds", "{:.0f} s"),
            _told(one, "cost", "{:.2f}"),
        )
        for one in result["stages"]
    ]
    print(columns(("  stage", "code version", "artifacts", "time", "cost"), rows))
    print("  Later stages are made anew only if these results differ.")
    if result["waits"]:
        print("  Nights and the source sensor wait for `align upgrade RECIPE --accept`; `align run` does not.")
    else:
        print(f"  Accepted by {result['accepted']['by']} at {result['accepted']['at']}: nights make it.")


def show_upgrades(result: dict[str, Any]) -> None:
    for name, one in result["recipes"].items():
        if one is None:
            print(f"{name}: nothing is of an older code version")
        show_upgrade(one)


MOST_NIGHTS = 100_000


def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    as_json: AsJson = False,
) -> None:
    """Bring a recipe up to date: what changed is made again, and no more."""
    from alignment_dags.cli.outcome import show_outcome, summary_of
    from alignment_dags.run.run import run_recipe

    result = tell(lambda: summary_of(run_recipe(recipe, say)), as_json, show_outcome)
    if result["failure"] is not None:
        raise typer.Exit(1)


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    config: Annotated[
        Path | None, typer.Option(help="The model's config.json, where it is not at hand: memory needs no weights.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what bringing a recipe up to date takes, before anything runs. Exit 1 if a pool cannot hold it."""
    from datetime import date

    from alignment.recipe import load_recipe
    from alignment_dags.planner.forecast import forecast
    from alignment_dags.run.upgrade import moved_stages
    from alignment_dags.run.workspace import Workspace
    from assets.evaluation_report import asked_of
    from eval.judge.retirement import retirement
    from resources.home import ensure_home
    from resources.pools import load_pools

    ensure_home()

    def work() -> dict[str, Any]:
        known = load_recipe(recipe)
        asked_of(known, str(recipe))
        workspace = Workspace(known, load_pools())
        stages = forecast(workspace, config)
        too_large = [one.stage for one in stages if one.fits is False and one.to_make != 0]
        warnings = [told for told in [retirement(known.judge, date.today())] if told is not None]
        return {
            "stages": [asdict(one) for one in stages],
            "too_large": too_large,
            "warnings": warnings,
            "notes": known.dpo.outside_practice(),
            "upgrade": upgrade_of(workspace, moved_stages(workspace.nodes, workspace.upstream()), stages),
        }

    if tell(work, as_json, show_plan)["too_large"]:
        raise typer.Exit(1)


def upgrade(
    recipes: Annotated[list[Path] | None, typer.Argument(help="Recipes (YAML); all in use by default.")] = None,
    accept: Annotated[bool, typer.Option("--accept", help="Let nights and the source sensor make it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what this version makes anew of what an older one made, and accept it. Exit 1 if it waits for acceptance."""
    import getpass
    from datetime import UTC, datetime

    from alignment.recipe import load_recipe
    from alignment_dags.planner.forecast import forecast
    from alignment_dags.run.upgrade import Upgrades, moved_stages
    from alignment_dags.run.workspace import Workspace, recipes_in_use
    from resources.home import ensure_home
    from resources.pools import load_pools

    ensure_home()

    def work() -> dict[str, Any]:
        pools = load_pools()
        chosen = [load_recipe(path) for path in recipes] if recipes else list(recipes_in_use().values())
        workspaces = [Workspace(recipe, pools) for recipe in chosen]
        moved = {one.recipe.name: moved_stages(one.nodes, one.upstream()) for one in workspaces}
        found = {}
        for one in workspaces:
            name = one.recipe.name
            found[name] = upgrade_of(one, moved[name], forecast(one) if moved[name] else ())
        for one in workspaces if accept else ():  # when all could be told, so that an error accepts nothing
            if (entry := found[one.recipe.name]) is not None and entry["waits"]:
                upgrades = Upgrades(one.store, one.recipe.name)
                noted = upgrades.accept(moved[one.recipe.name], getpass.getuser(), datetime.now(UTC))
                entry |= {"waits": False, "accepted": noted.model_dump(mode="json")}
        return {"recipes": found}

    found = tell(work, as_json, show_upgrades)["recipes"]
    if any(one is not None and one["waits"] for one in found.values()):
        raise typer.Exit(1)


def backfill(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
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


def nights(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
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
