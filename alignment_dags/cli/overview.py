"""Verbs to begin with and to look around: a first recipe, how everything stands, and whether this machine can work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alignment_dags.cli.arguments import RecipeFiles
from alignment_dags.cli.output import AsJson, tell


def status(recipes: RecipeFiles = None, as_json: AsJson = False) -> None:
    """Show every recipe's champion, what is stale and why, its nights, and the pools."""
    from datetime import UTC, datetime

    from alignment_dags.status import show_status, status
    from resources.home import ensure_home

    ensure_home()
    tell(lambda: status(recipes or [], datetime.now(UTC)), as_json, show_status)


def doctor(
    judge: Annotated[bool, typer.Option("--judge", help="Ask each recipe's judge endpoint too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check versions, homes, store, MLflow, Dagster, recipes and pools; exit 1 if something is bad."""
    from alignment_dags.doctor import doctor, show_doctor

    if not tell(lambda: doctor(judge), as_json, show_doctor)["ok"]:
        raise typer.Exit(1)


def init(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, GGUF file, or OWNER/NAME on the Hugging Face Hub.")],
    data: Annotated[list[str], typer.Argument(help="Preference files, globs or folders.")],
    name: Annotated[str | None, typer.Option(help="Name of the recipe; the data file's by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; NAME.yaml by default.")] = None,
    sft: Annotated[str | None, typer.Option(help="Conversations to fine-tune the model on first.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="NAME=COLUMN, such as prompt=question, for data in no known form; repeat for more."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a first recipe for a model and preference data, with a method that fits the data."""
    from alignment_dags.start import show_start, start
    from resources.home import ensure_home

    ensure_home()

    def work() -> dict[str, Any]:
        result = start(model, data, name, out, sft, column or [])
        return result | {"plan": planned_memory(Path(result["file"]))}

    tell(work, as_json, show_start)


def planned_memory(recipe: Path) -> list[str]:
    """Memory of each stage that loads a model, by the plan; empty where it needs a hub that gives no answer."""
    from alignment.errors import BadInput
    from alignment.recipe import load_recipe
    from alignment_dags.planner.forecast import forecast
    from alignment_dags.run.workspace import Workspace
    from resources.pools import load_pools

    try:
        stages = forecast(Workspace(load_recipe(recipe), load_pools()))
    except BadInput:
        return []
    needed = [(stage, stage.memory_gib.value) for stage in stages if stage.pool is not None]
    return [
        f"{stage.stage} {gib * 1024:.1f} MiB" if gib < 1 else f"{stage.stage} {gib:.1f} GiB"
        for stage, gib in needed
        if gib
    ] + [f"{stage.stage} does not fit its pool" for stage, _ in needed if stage.fits is False]
