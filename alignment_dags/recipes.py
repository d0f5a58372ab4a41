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
    """File to recipe. Two of one name would be the same assets, two of one model name each other's champion."""
    found: dict[Path, Recipe] = {}
    for path in recipe_files():
        recipe = load_recipe(path)
        for other, known in found.items():
            if known.name == recipe.name:
                raise BadInput(f"'{recipe.name}' is also the name of {other}", file=str(path), field="name")
            if known.model_name == recipe.model_name:
                told = f"'{recipe.model_name}' is also the model of {other}"
                raise BadInput(told, file=str(path), field="registry.model_name")
        found[path] = recipe
    return found
