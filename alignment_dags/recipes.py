"""Which recipes Dagster shows: ALIGN_RECIPES (paths or globs, separated like PATH), or recipes/*.yaml."""

from __future__ import annotations

import os
from pathlib import Path

from alignment.errors import BadInput
from alignment.recipe import Recipe, load_recipe
from resources.home import PROJECT
from resources.pools import pools_file

RECIPES = "ALIGN_RECIPES"


def recipe_files() -> list[Path]:
    named = os.environ.get(RECIPES)
    patterns = named.split(os.pathsep) if named else [str(PROJECT / "recipes" / "*.yaml")]
    files = {path.resolve() for pattern in patterns for path in Path(pattern).parent.glob(Path(pattern).name)}
    return sorted(files - {pools_file().resolve()})


def recipes_in_use() -> dict[Path, Recipe]:
    """File to recipe; two recipes of one name are refused, as their assets would be the same."""
    found: dict[Path, Recipe] = {}
    by_name: dict[str, Path] = {}
    for path in recipe_files():
        recipe = load_recipe(path)
        if recipe.name in by_name:
            raise BadInput(f"name '{recipe.name}' is also that of {by_name[recipe.name]}", file=str(path), field="name")
        by_name[recipe.name] = path
        found[path] = recipe
    return found
