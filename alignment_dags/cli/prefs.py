"""`align prefs`: preference data, checked, searched, withdrawn and restored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignment.errors import BadInput
from alignment_dags.cli.arguments import RecipeFile, data_or_recipe, data_or_recipes
from alignment_dags.cli.output import AsJson, tell

prefs = typer.Typer(help="Preference data.", no_args_is_help=True)


@prefs.command("check")
def prefs_check(
    files: Annotated[
        list[str],
        typer.Argument(help="Preference files, globs, folders or URLs, or recipes.", callback=data_or_recipes),
    ],
    as_json: AsJson = False,
) -> None:
    """Validate preference files, or those of recipes: forms, and the reason for each row that is set aside."""
    from alignment.data.check import check_files
    from alignment_dags.cli.output import show_check

    checked = tell(lambda: check_files(files), as_json, show_check)
    if not checked["accepted"]:
        told = "; ".join(dict.fromkeys(checked["advice"].values()))
        raise BadInput(f"no valid row{f'; {told}' if told else ''}", file=", ".join(files))


@prefs.command("show")
def prefs_show(
    target: Annotated[
        str, typer.Argument(help="A preference file, glob, folder or URL, or a recipe.", callback=data_or_recipe)
    ],
    row: Annotated[
        int | None, typer.Option(min=1, help="Number of the record in its file; the first rows without.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder with the tokenizer; a recipe's own model without.")] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="Tokens, in place of the recipe's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show rows as the model will see them: template, ids, what counts; and what is dropped or cut."""
    from alignment.data.check import show_rows
    from alignment_dags.cli.output import show_seen

    tell(lambda: show_rows(target, row, model, max_length), as_json, show_seen)


@prefs.command("stats")
def prefs_stats(
    data: Annotated[
        list[str],
        typer.Argument(help="Preference files, globs, folders or URLs; or one recipe.", callback=data_or_recipes),
    ],
    picture: Annotated[Path | None, typer.Option(help="PNG file to write, with the distributions.")] = None,
    as_json: AsJson = False,
) -> None:
    """What may be wrong with preference data: length, scores, contradictions, near-duplicates, test items, shift."""
    from alignment_dags.source.statistics import show_statistics, statistics
    from resources.home import ensure_home

    ensure_home()
    tell(lambda: statistics(data, picture), as_json, show_statistics)


@prefs.command("noise")
def prefs_noise(
    data: Annotated[
        list[str],
        typer.Argument(help="One recipe; or preference files, globs, folders or URLs.", callback=data_or_recipes),
    ],
    most: Annotated[int, typer.Option(min=100, help="Pairs to estimate from, at most.")] = 50_000,
    as_json: AsJson = False,
) -> None:
    """Estimate how many labels are flipped, with a 95 % interval, and name shards whose sides are swapped."""
    from alignment_dags.source.statistics import noise, show_noise
    from resources.home import ensure_home

    ensure_home()
    tell(lambda: noise(data, most), as_json, show_noise)


@prefs.command("find")
def prefs_find(
    recipe: RecipeFile,
    text: Annotated[str, typer.Argument(help="Text to look for, as it is in the row.")],
    as_json: AsJson = False,
) -> None:
    """The ids of a recipe's rows that hold a text, with the file and line each came from."""
    from alignment_dags.retention.withdraw import find_rows, show_found
    from resources.home import ensure_home

    ensure_home()
    tell(lambda: find_rows(recipe, text), as_json, show_found)


@prefs.command("withdraw")
def prefs_withdraw(
    recipe: RecipeFile,
    row_ids: Annotated[list[str] | None, typer.Option("--row-id", help="Row id; repeat for more.")] = None,
    shards: Annotated[list[str] | None, typer.Option("--shard", help="Whole shard; repeat for more.")] = None,
    reason: Annotated[str, typer.Option(help="Why, without personal data: it is kept.")] = "",
    as_json: AsJson = False,
) -> None:
    """Take rows or shards out of a recipe for good: no later build uses them, `align gc` erases their text."""
    from alignment_dags.retention.withdraw import show_withdrawal, withdraw
    from resources.home import ensure_home

    ensure_home()
    tell(lambda: withdraw(recipe, row_ids or [], shards or [], reason), as_json, show_withdrawal)


@prefs.command("restore")
def prefs_restore(
    recipe: RecipeFile,
    row_ids: Annotated[list[str] | None, typer.Option("--row-id", help="Row id; repeat for more.")] = None,
    shards: Annotated[list[str] | None, typer.Option("--shard", help="Whole shard; repeat for more.")] = None,
    as_json: AsJson = False,
) -> None:
    """Undo a withdrawal: the next run uses what the source still holds of it."""
    from alignment_dags.retention.withdraw import restore, show_restored
    from resources.home import ensure_home

    ensure_home()
    tell(lambda: restore(recipe, row_ids or [], shards or []), as_json, show_restored)


@prefs.command("evidence")
def prefs_evidence(recipe: RecipeFile, as_json: AsJson = False) -> None:
    """Compare withdrawn rows under the new policy with pairs it never saw: after `align run`, before `align gc`."""
    from alignment_dags.retention.evidence import measure_evidence, show_evidence

    tell(lambda: measure_evidence(recipe), as_json, show_evidence)
