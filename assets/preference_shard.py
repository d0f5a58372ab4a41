"""`preference_shard`: one source file's validated pairs; no model takes part."""

from __future__ import annotations

from pathlib import Path

from alignment.errors import BadInput
from alignment.recipe import Recipe
from alignment.stages.preference_shard import STAGE, ShardRequest
from alignment.store import Commit
from assets.building.node import Node, Shown
from assets.building.show import table
from assets.building.upstream import Upstream


def preference_shard(recipe: Recipe) -> Node:
    def request(upstream: Upstream, shard: str | None) -> ShardRequest:
        shards = upstream.shards(recipe.preferences, recipe.seed)
        if shard is None or shard not in shards:
            raise BadInput(f"no shard '{shard}' in the recipe's preferences", file=recipe.name, field="preferences")
        return shards[shard]

    return Node(
        name="preference_shard",
        phase="shards",
        stage=STAGE,
        description="Validated preference rows of one source file; every other row is quarantined with its reason.",
        kinds=frozenset({"parquet"}),
        needs=(),
        request=request,
        show=show,
        partitioned=True,
    )


def show(commit: Commit, folder: Path) -> Shown:
    reasons = commit.summary.get("reasons", {})
    if not reasons:
        return Shown()
    rows = sorted(reasons.items(), key=lambda reason: -reason[1])
    return Shown(markdown={"quarantine": table(("reason", "rows"), rows)})
