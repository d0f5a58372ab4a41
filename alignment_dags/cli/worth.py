"""Verbs that say what a training would be worth, or was."""

from __future__ import annotations

from typing import Any

from alignment_dags.cli.arguments import RecipeFile
from alignment_dags.cli.output import AsJson, columns, tell


def show_worth(result: dict[str, Any]) -> None:
    """Prints what a night would have, could prove and would take."""
    print(f"{result['recipe']}: {result['told']}")
    rows = [
        (
            one["metric"],
            "unknown" if one["change"] is None else f"{one['change']:.4g}",
            f"{one['margin']:.4g}",
            str(one["clusters"]),
            "-" if one["needed"] is None else str(one["needed"]),
            str(one["reports"]),
        )
        for one in result["worth"]["provable"]
    ]
    if rows:
        header = ("metric", "smallest provable change", "margin", "items", "items for the margin", "reports")
        print(columns(header, rows))
    print(f"the next night sleeps: {result['sleeps']}" if result["sleeps"] else "the next night trains")


def worth(recipe: RecipeFile, as_json: AsJson = False) -> None:
    """Say what is new since the last training, and the smallest change that a night could prove."""
    from datetime import UTC, datetime

    from alignment.recipe import load_recipe
    from alignment_dags.nights.worth import worth_now
    from alignment_dags.run.workspace import Workspace
    from resources.home import ensure_home
    from resources.pools import load_pools

    ensure_home()
    tell(lambda: worth_now(Workspace(load_recipe(recipe), load_pools()), datetime.now(UTC)), as_json, show_worth)
