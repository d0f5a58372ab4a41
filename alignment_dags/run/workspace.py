"""One recipe as a command or a tick works on it: its pools, its nodes by phase, and its store."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from alignment.recipe import Recipe, load_recipe
from alignment.store import Store
from alignment_dags.recipes import RECIPES
from assets.building.node import PHASES, Node, PhaseName
from assets.building.upstream import Upstream
from assets.graph import nodes_of
from assets.new_rows import INCOMING
from assets.registered_model import registered_model
from resources.home import ensure_home
from resources.pools import Pools, load_pools
from resources.store import ArtifactStore


@dataclass(frozen=True)
class Phase:
    """Nodes that one Dagster run makes: it cannot mix shards with what has none. `name` ends the job's name."""

    name: str
    nodes: tuple[Node, ...]

    @property
    def partitioned(self) -> bool:
        """Whether its nodes are made shard by shard."""
        return self.nodes[0].partitioned


MANIFEST = "preference_manifest"


def job_name(recipe_name: str, phase_name: str) -> str:
    """The name of a phase's job in Dagster."""
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
    def pinning(self) -> tuple[Node, ...]:
        """The nodes of the phase `train` that the first manifest needs, itself last: a night makes these first, and
        trains on the manifest that they pin."""
        needed = {MANIFEST}
        for node in reversed(self.phase("train").nodes):
            if node.name in needed:
                needed.update(node.needs)
        return tuple(node for node in self.phase("train").nodes if node.name in needed)

    @cached_property
    def measuring(self) -> tuple[Node, ...]:
        """The nodes of the phase `train` by which a night that sleeps measures rows that wait; none of them is part of
        a training."""
        return tuple(node for node in self.phase("train").nodes if node.name in INCOMING)

    @cached_property
    def return_phase(self) -> Phase:
        """A person's return to an earlier version. It loads no model, so it waits for no slot of a pool."""
        return Phase("return", (replace(registered_model(self.recipe, self.pools), pool=None),))

    def upstream(self) -> Upstream:
        """The current artifacts of the nodes, each read once from now on."""
        return Upstream(self.store, self.recipe.name)


def use_recipe(path: Path) -> Workspace:
    """The recipe in a file, made the only one that this process and those that Dagster starts from it load."""
    recipe = load_recipe(path)
    os.environ[RECIPES] = str(path.resolve())
    ensure_home()
    return Workspace(recipe, load_pools())
