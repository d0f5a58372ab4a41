"""One recipe as a command or a tick works on it: its pools, its nodes by phase, and its store."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from alignment.errors import BadInput
from alignment.recipe import Recipe, load_recipe
from alignment.store import Store
from assets.building.node import PHASES, Node, PhaseName
from assets.building.upstream import Upstream
from assets.graph import nodes_of
from assets.registered_model import registered_model
from resources.home import PROJECT, ensure_home
from resources.pools import Pools, is_pools_file, load_pools, pools_file
from resources.store import ArtifactStore


@dataclass(frozen=True)
class Phase:
    """Nodes that one Dagster run makes: it cannot mix shards with what has none. `name` ends the job's name."""

    name: str
    nodes: tuple[Node, ...]

    @property
    def partitioned(self) -> bool:
        return self.nodes[0].partitioned


def job_name(recipe_name: str, phase_name: str) -> str:
    return f"{recipe_name}_{phase_name}"


@dataclass(frozen=True)
class Workspace:
    """A recipe with the pools it runs in, its nodes and its store; made once a command, or once a tick of a sensor.

    Nodes are built and the store is opened when they are first asked for, and kept. What is in the store may change at
    any time: `upstream` reads it anew.
    """

    recipe: Recipe
    pools: Pools
    open_store: Callable[[], Store] = field(default_factory=lambda: ArtifactStore().open)

    @cached_property
    def store(self) -> Store:
        """The artifact store, ready to write to; raises `BadInput` naming a place that cannot be used."""
        return self.open_store()

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node of the recipe, each after those it needs."""
        return tuple(nodes_of(self.recipe, self.pools))

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that the nodes name, in the order they run."""
        phases = (Phase(name, tuple(node for node in self.nodes if node.phase == name)) for name in PHASES)
        return tuple(phase for phase in phases if phase.nodes)

    def phase(self, name: PhaseName) -> Phase:
        """The phase of that name."""
        return next(phase for phase in self.phases if phase.name == name)

    @cached_property
    def return_phase(self) -> Phase:
        """A person's return to an earlier version. It loads no model, so it waits for no slot of a pool."""
        return Phase("return", (replace(registered_model(self.recipe, self.pools), pool=None),))

    def upstream(self) -> Upstream:
        """The current artifacts of the nodes, each read once from now on."""
        return Upstream(self.store, self.recipe.name)


# Which recipes Dagster shows: ALIGN_RECIPES (paths or globs, separated like PATH), or recipes/*.yaml.

RECIPES = "ALIGN_RECIPES"


def use_recipe(path: Path) -> Workspace:
    """The recipe in a file, made the only one that this process and those that Dagster starts from it load."""
    recipe = load_recipe(path)
    os.environ[RECIPES] = str(path.resolve())
    ensure_home()
    return Workspace(recipe, load_pools())


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
