"""`policy_checkpoint`: the aligned model."""

from __future__ import annotations

from pathlib import Path

from alignment.recipe import Recipe
from alignment.stages.policy_checkpoint import STAGE, DpoRequest
from alignment.stages.stage import PolicySummary
from alignment.store import Commit
from assets.building.node import Node, Shown
from assets.building.show import curves
from assets.building.upstream import Upstream
from resources.pools import Pools

STARTS = {"sft_checkpoint": "SFT checkpoint", "base_model": "base model"}


def policy_checkpoint(recipe: Recipe, pools: Pools) -> Node:
    """The node of the aligned model."""
    start = recipe.method.start

    def request(upstream: Upstream, shard: str | None) -> DpoRequest:
        return DpoRequest(
            manifest=upstream("preference_manifest"),
            checkpoint=upstream(start),
            settings=recipe.dpo,
            tokens=recipe.tokens,
            seed=recipe.seed,
            world_size=pools[recipe.pools.policy].world_size,
            pass_tokens=recipe.reference.batch_tokens,
        )

    return Node(
        name="policy_checkpoint",
        phase="train",
        stage=STAGE,
        description=(
            "The policy: DPO from the SFT checkpoint against cached reference log-probs."
            if recipe.method.needs_reference
            else f"The policy: preference training from the {STARTS[start]}, without a reference."
        ),
        kinds=frozenset({"pytorch", "huggingface"}),
        needs=("preference_manifest", start),
        request=request,
        show=show,
        pool=recipe.pools.policy,
        is_checkpoint=True,
    )


def show(commit: Commit, folder: Path) -> Shown:
    """Curves of the training."""
    history = PolicySummary.of(commit).history
    panels = {"loss": ["loss"], "reward margin": ["margin"], "accuracy": ["accuracy"]}
    return Shown(history=history, markdown={"training": curves(history, panels)} if history else {})
