"""Verbs that say how things stand: every recipe at once, and whether this machine can work."""

from __future__ import annotations

from typing import Annotated

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
