"""`align pools` and `align recipes`: the configuration of a project."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment.errors import BadInput, counted
from alignment_dags.cli.arguments import recipe_completions, recipe_paths
from alignment_dags.cli.output import AsJson, say, stdout_kept, tell

pools = typer.Typer(help="Compute pools.", no_args_is_help=True)
recipes = typer.Typer(help="Recipes.", no_args_is_help=True)


@pools.command("apply")
def pools_apply(as_json: AsJson = False) -> None:
    """Make Dagster's pool limits those of pools.yaml."""
    from alignment_dags.cli.output import show_fields
    from alignment_dags.run.workers import apply_pools
    from resources.databases import dagster_instance
    from resources.home import ensure_home
    from resources.pools import load_pools

    def work() -> dict[str, Any]:
        ensure_home()
        with dagster_instance() as instance:
            return {"limits": apply_pools(instance, load_pools())}

    tell(work, as_json, lambda result: show_fields(result["limits"]))


Out = Annotated[Path | None, typer.Option(help="File to write.")]


@recipes.command("schema")
def recipes_schema(out: Out = None) -> None:
    """The JSON Schema of a recipe, for editors."""
    from alignment.recipe import Recipe

    _give(json.dumps(Recipe.model_json_schema(), indent=1, sort_keys=True) + "\n", out)


@recipes.command("reference")
def recipes_reference(out: Out = None) -> None:
    """Every key of a recipe with its range, default and meaning, as Markdown."""
    from alignment_dags.cli.keys import recipe_page

    _give(recipe_page(), out)


def _give(text: str, out: Path | None) -> None:
    """Prints a text, or writes it to a file; raises `BadInput` naming a file that cannot be written."""
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot be written: {error.strerror}", file=str(out), field="--out") from error


@recipes.command("check")
def recipes_check(
    files: Annotated[
        list[Path],
        typer.Argument(help="Recipes: files or names.", callback=recipe_paths, autocompletion=recipe_completions),
    ],
) -> None:
    """Say what is wrong in recipes, or not there: keys, pools, data files, models; pools files are read too."""
    from alignment.recipe import load_recipe
    from alignment_dags.check import check_places, check_suites, not_there_yet
    from assets.evaluation_report import gate_and_baselines
    from assets.preference_shard import refuse_files
    from eval.gate.default import left_out_of_default
    from eval.judge.retirement import retirement
    from resources.compute import check_packages, check_processes
    from resources.pools import is_pools_file, load_pools

    for path in files:
        if is_pools_file(path):
            print(f"{path}: {counted(len(load_pools(path).pools), 'pool')}, well-formed (no recipe)")
            continue
        recipe = load_recipe(path)
        with stdout_kept():
            gate_and_baselines(recipe, str(path))
            check_places(recipe, load_pools(), str(path))
            check_suites(recipe, str(path))
            check_packages(recipe, load_pools())
            check_processes(recipe, load_pools())
            refuse_files(recipe)
        print(f"{path}: {recipe.name} is well-formed")
        if warning := retirement(recipe.judge, date.today()):
            say(f"warning: {path}: {warning}")
        for note in (*not_there_yet(recipe, load_pools()), *recipe.notes(), *left_out_of_default(recipe)):
            say(f"note: {path}: {note}")


@recipes.command("upgrade")
def recipes_upgrade(
    files: Annotated[list[Path], typer.Argument(help="Recipes (YAML).")],
    out: Annotated[Path | None, typer.Option(help="File to write; the recipe's own by default.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the changes and write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Rewrite `dpo:` with `loss:` to `optimise:` with `method:`; comments and order stay, and so does every key."""
    from difflib import unified_diff

    from alignment.recipe.upgrade import upgraded, write_whole
    from resources.pools import is_pools_file

    def work() -> dict[str, Any]:
        if out is not None and len(files) > 1:
            raise BadInput("takes one recipe at a time", field="--out")
        texts = {path: upgraded(path) for path in files if not is_pools_file(path)}  # all, before one is written
        changes = []
        for path, (old, new) in texts.items():
            target = out or path
            written = not dry_run and (new != old or out is not None)
            if written:
                write_whole(target, new)
            lines = unified_diff(old.splitlines(), new.splitlines(), str(path), str(target), n=1, lineterm="")
            change = {"file": str(path), "changed": new != old, "written": str(target) if written else None}
            changes.append(change | {"diff": list(lines)})
        return {"recipes": changes}

    tell(work, as_json, show_upgraded)


def show_upgraded(result: dict[str, Any]) -> None:
    """Prints what was rewritten in each recipe, or would be."""
    for change in result["recipes"]:
        for line in change["diff"]:
            print(line)
        done = f"written to {change['written']}" if change["written"] else "nothing written"
        print(f"{change['file']}: {done if change['changed'] else f'nothing to rewrite; {done}'}")
