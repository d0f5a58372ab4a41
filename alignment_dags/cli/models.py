"""Verbs about registered models: where they come from, which is champion, and what may go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignment.errors import BadInput
from alignment_dags.cli.telling import AsJson, say, tell


def lineage(
    model: Annotated[
        str | None, typer.Argument(help="MODEL, MODEL@alias or MODEL@version (champion by default).")
    ] = None,
    row: Annotated[str | None, typer.Option(help="A row id instead: which models ever saw it.")] = None,
    source: Annotated[str, typer.Option("--from", help="store (commit records) or mlflow.")] = "store",
    as_json: AsJson = False,
) -> None:
    """Walk from a model version back to its rows (shards, reference, SFT, base, code, runs), or from a row on."""
    from alignment_dags.cli.lineage_page import show_lineage
    from alignment_dags.lineage.model import lineage_of
    from alignment_dags.lineage.rows import row_lineage, show_row
    from resources.home import ensure_home

    if (model is None) == (row is None):
        raise BadInput("give either a MODEL or --row")
    if row is not None and not row.strip():
        raise BadInput("no row is named", field="--row")
    ensure_home()
    if row is not None:
        tell(lambda: row_lineage(row), as_json, show_row)
    else:
        tell(lambda: lineage_of(str(model), source), as_json, show_lineage)


def promote(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    to: Annotated[str | None, typer.Option(help="Version to return to.")] = None,
    override: Annotated[
        bool, typer.Option("--override", help="Promote the recipe's current policy despite the gate.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why; recorded with the model, and needed for --override.")] = "",
    recipe: Annotated[Path | None, typer.Option(help="Its recipe (YAML), if not among those in use.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a version champion by a person's decision, which is recorded in MLflow, in lineage and in reports."""
    from alignment_dags.promote import Wish, promote, show_promotion

    wish = Wish(model, to, override, reason, recipe)
    tell(lambda: promote(wish, say), as_json, show_promotion)


def gc(
    recipes: Annotated[list[Path] | None, typer.Argument(help="Recipes (YAML); none: all in the store.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and how much that is.")] = False,
    keep: Annotated[int, typer.Option(min=0, help="Policies a recipe keeps beside champions and current ones.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Erase the text of withdrawn rows, weights of old checkpoints, and leftovers of interrupted builds."""
    from alignment_dags.gc.collect import collect
    from alignment_dags.gc.page import show_collected
    from resources.home import ensure_home

    ensure_home()
    tell(lambda: collect(recipes or [], keep=keep, dry_run=dry_run), as_json, show_collected)


def report(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    out: Annotated[Path | None, typer.Option(help="File to write; report.html or history.html by default.")] = None,
    history: Annotated[bool, typer.Option("--history", help="Every registered version instead of the last report.")] = (
        False
    ),
    as_json: AsJson = False,
) -> None:
    """Write the recipe's report, or the history of its registered versions, as one HTML file."""
    from alignment_dags.cli.tables import show_fields
    from alignment_dags.history import write_report

    tell(lambda: write_report(recipe, out, history), as_json, show_fields)
