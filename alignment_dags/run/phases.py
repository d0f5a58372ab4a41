"""The phases a recipe is run in: a Dagster run cannot mix shards with what has none."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from alignment.errors import BadInput
from alignment.recipe import Recipe, load_recipe
from assets.building.node import PHASES, Node, PhaseName
from assets.graph import nodes_of
from assets.registered_model import registered_model
from resources.home import PROJECT
from resources.pools import Pools, is_pools_file, pools_file


@dataclass(frozen=True)
class Phase:
    """Nodes that one Dagster run makes; `name` ends the job's name."""

    name: str
    nodes: tuple[Node, ...]

    @property
    def partitioned(self) -> bool:
        return self.nodes[0].partitioned


def job_name(recipe_name: str, phase_name: str) -> str:
    return f"{recipe_name}_{phase_name}"


def return_phase(recipe: Recipe, pools: Pools) -> Phase:
    """A person's return to an earlier version. It loads no model, so it waits for no slot of a pool."""
    return Phase("return", (replace(registered_model(recipe, pools), pool=None),))


def phases_of(recipe: Recipe, pools: Pools) -> list[Phase]:
    """The phases that the recipe's nodes name, in the order they run."""
    nodes = nodes_of(recipe, pools)
    phases = (Phase(name, tuple(node for node in nodes if node.phase == name)) for name in PHASES)
    return [phase for phase in phases if phase.nodes]


def phase_named(name: PhaseName, recipe: Recipe, pools: Pools) -> Phase:
    """The recipe's phase of that name."""
    return next(phase for phase in phases_of(recipe, pools) if phase.name == name)


# Which recipes Dagster shows: ALIGN_RECIPES (paths or globs, separated like PATH), or recipes/*.yaml.

RECIPES = "ALIGN_RECIPES"


def recipe_files() -> list[Path]:
    named = os.environ.get(RECIPES)
    patterns = named.split(os.pathsep) if named else [str(PROJECT / "recipes" / "*.yaml")]
    files = {path.resolve() for pattern in patterns for path in Path(pattern).parent.glob(Path(pattern).name)}
    return sorted(path for path in files - {pools_file().resolve()} if not is_pools_file(path))


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
