"""The phases a recipe is run in: a Dagster run cannot mix shards with what has none."""

from __future__ import annotations

from dataclasses import dataclass, replace

from alignment.recipe import Recipe
from assets.building.node import Node
from assets.graph import nodes_of
from assets.registered_model import registered_model
from resources.pools import Pools


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
    """base (base model and SFT), shards, reference, train (manifest onward)."""
    nodes = nodes_of(recipe, pools)
    first_shard = next(index for index, node in enumerate(nodes) if node.partitioned)
    shards = [node for node in nodes if node.partitioned]
    after = [node for node in nodes[first_shard:] if not node.partitioned]
    return [
        Phase("base", tuple(nodes[:first_shard])),
        *(Phase({"preference_shard": "shards"}.get(node.name, "reference"), (node,)) for node in shards),
        Phase("train", tuple(after)),
    ]
