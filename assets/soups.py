"""The nodes of a recipe's `soups`: averages of the trained policy and earlier checkpoints, and the best of them.

An average costs no training: its nodes stand in a group of its name, as `soup_sft_0_2/policy_checkpoint`, and all are
answered, scored and compared as the points of a sweep are. The policy alone is one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice

from alignment.errors import BadInput
from alignment.recipe.recipe import Recipe
from alignment.stages.merged_checkpoint import STAGE, TRAINED, MergeRequest
from alignment.store import Artifact
from assets.building.node import Node
from assets.building.upstream import Upstream
from assets.merge import TRAINED_NODE, average_with, champions, is_usable, require_same
from assets.sweep import compared, winning
from eval.gate.sweep import described
from resources.pools import Pools


def soups(recipe: Recipe, pools: Pools) -> Iterator[Node]:
    """A node for each average, those that compare them, and `policy_checkpoint`, which is the one that was picked."""
    assert recipe.soups is not None
    averages = {name: average(recipe, name, what) for name, what in recipe.soups.points.items()}
    yield from averages.values()
    yield from compared(recipe, pools, averages)
    yield winning(averages, "The policy: the average that was picked, or the trained policy alone.")


def average(recipe: Recipe, name: str, what: Mapping[str, float]) -> Node:
    """The node of one average; of the policy alone it is a copy, so that all candidates are of one kind."""

    def request(upstream: Upstream, shard: str | None) -> MergeRequest:
        trained = upstream(TRAINED_NODE)
        parts, weights = {TRAINED: trained}, {TRAINED: 1.0 - what.get("sft", 0.0)}
        if "sft" in what:
            parts["sft"], weights["sft"] = upstream("sft_checkpoint"), what["sft"]
        for place, champion in enumerate(last_champions(upstream, trained, int(what.get("champions", 0))), start=1):
            part = "champion" if place == 1 else f"champion_{place}"
            parts[part], weights[part] = champion, 1.0
        return average_with(upstream, trained, parts, weights)

    return Node(
        name=f"{name}/policy_checkpoint",
        phase="train",
        stage=STAGE,
        description=f"A candidate: {'an average of the policy and ' if what else ''}{described(what)}.",
        kinds=frozenset({"pytorch", "huggingface"}),
        needs=(TRAINED_NODE, *(("sft_checkpoint",) if "sft" in what else ())),
        request=request,
        pool=recipe.pools.policy,
        is_checkpoint=True,
    )


def last_champions(upstream: Upstream, trained: Artifact, most: int) -> list[Artifact]:
    """The last champions that can be averaged with a policy, the latest first."""

    def fits(champion: Artifact) -> bool:
        with suppress(BadInput):  # of another architecture: an average with it is no candidate, and no mistake either
            require_same(upstream.store, trained, champion, "the champion")
            return is_usable(upstream, champion)
        return False

    return list(islice(filter(fits, champions(upstream, trained)), most))
