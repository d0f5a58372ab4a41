"""Arguments that several verbs take, completed by Tab: a recipe by its file or name, and a registered model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _recipe(given: Path) -> Path:
    """The file of a recipe that was named by its file or its name."""
    from alignment_dags.recipes import recipe_file

    return recipe_file(given)


def recipe_paths(given: list[Path] | None) -> list[Path] | None:
    """The files of recipes that were named by their files or their names."""
    return None if given is None else [_recipe(path) for path in given]


def data_or_recipe(given: str) -> str:
    """What a person named: preference files as they are, and the file of a recipe that was named by its name."""
    from alignment_dags.recipes import recipe_names

    if not given.isidentifier() or Path(given).exists():
        return given  # a path, a glob, a URL
    return str(recipe_names().get(given, given))


def data_or_recipes(given: list[str]) -> list[str]:
    """The same of several."""
    return [data_or_recipe(one) for one in given]


def recipe_completions(incomplete: str) -> list[str]:
    """Names of recipes that begin so. Without any the shell completes file names."""
    from alignment.errors import BadInput
    from alignment_dags.recipes import recipe_names

    try:
        return [name for name in sorted(recipe_names()) if name.startswith(incomplete)]
    except BadInput:  # a home that cannot be used: the command itself says so
        return []


RecipeFile = Annotated[
    Path, typer.Argument(help="Recipe: its file or its name.", callback=_recipe, autocompletion=recipe_completions)
]
RecipeFiles = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Recipes: files or names; all in use by default.", callback=recipe_paths, autocompletion=recipe_completions
    ),
]
Model = Annotated[
    str,
    typer.Argument(
        help="MODEL, MODEL@champion or MODEL@version (champion by default).", autocompletion=recipe_completions
    ),
]
