"""`policy_checkpoint`: the aligned model."""

from __future__ import annotations

from pathlib import Path

from alignment.guards import policy_guards, setup_notes
from alignment.recipe import Recipe
from alignment.stages.policy_checkpoint import STAGE, DpoRequest
from alignment.stages.stage import PolicySummary
from alignment.store import Commit, MissingArtifact
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
            sft_dataset=upstream("sft_dataset") if recipe.dpo.sft_rows_fraction else None,
        )

    return Node(
        name="policy_checkpoint",
        phase="train",
        stage=STAGE,
        description=(
            f"The policy: preference training ({recipe.training.called}) from the {STARTS[start]}, "
            + ("against cached reference log-probs." if recipe.method.needs_reference else "without a reference.")
        ),
        kinds=frozenset({"pytorch", "huggingface"}),
        needs=("preference_manifest", start, *(("sft_dataset",) if recipe.dpo.sft_rows_fraction else ())),
        request=request,
        show=show,
        pool=recipe.pools.policy,
        is_checkpoint=True,
        guards=policy_guards(recipe.dpo, recipe.tokens),
    )


def setup_of(recipe: Recipe, upstream: Upstream) -> list[str]:
    """What is wrong with data and start checkpoint before a training, where both are made already."""
    manifest, start = upstream.get("preference_manifest"), upstream.get(recipe.method.start)
    if manifest is None or start is None:
        return []
    try:
        return setup_notes(upstream.store, manifest, start, recipe.dpo, recipe.tokens)
    except MissingArtifact:  # erased, or collected: the next run makes it again, and its guard says it then
        return []


def show(commit: Commit, folder: Path) -> Shown:
    """Curves of the training."""
    history = PolicySummary.of(commit).history
    named = {"loss": "loss", "reward margin": "margin", "accuracy": "accuracy"}
    panels = {title: [name, f"held_out_{name}"] for title, name in named.items()}
    if any("sft_loss" in record for record in history):
        panels["loss of SFT rows"] = ["sft_loss"]
    return Shown(history=history, markdown={"training": curves(history, panels)} if history else {})
