"""`sft_checkpoint`: the fine-tuned (or adopted) checkpoint: where DPO starts, and its reference."""

from __future__ import annotations

from pathlib import Path

from alignment.models.pin import pin_model
from alignment.recipe.recipe import Recipe
from alignment.recipe.training import SftTraining
from alignment.stages.sft_checkpoint import STAGE, SftRequest
from alignment.stages.stage import SftSummary
from alignment.store import Commit
from assets.building.node import Node, Shown
from assets.building.show import curves
from assets.building.upstream import Upstream
from resources.pools import Pools


def sft_checkpoint(recipe: Recipe, pools: Pools) -> Node:
    """The node of the SFT checkpoint."""
    if (sft := recipe.sft) is None:
        raise ValueError("a recipe without SFT has no sft_checkpoint")
    adopted = sft.adopt

    def request(upstream: Upstream, shard: str | None) -> SftRequest:
        return SftRequest(
            base=None if adopted else upstream("base_model"),
            dataset=None if adopted else upstream("sft_dataset"),
            adopt=pin_model(adopted, "sft.adopt") if adopted else None,
            settings=SftTraining.of(sft),
            tokens=recipe.tokens.writing(),
            seed=recipe.seed,
            world_size=pools[recipe.pools.sft].world_size,
        )

    return Node(
        name="sft_checkpoint",
        phase="base",
        stage=STAGE,
        description=f"The {recipe.spoken_start}: where the policy starts, and the reference its log-probs come from.",
        kinds=frozenset({"pytorch", "huggingface"}),
        needs=() if adopted else ("base_model", "sft_dataset"),
        request=request,
        show=show,
        pool=recipe.pools.sft,
        is_checkpoint=True,
        training=None if adopted else sft,
    )


def show(commit: Commit, folder: Path) -> Shown:
    """Curves of the training; nothing for an adopted checkpoint."""
    history = SftSummary.of(commit).history
    if not history:
        return Shown()
    return Shown(history=history, markdown={"loss": curves(history, {"loss": ["loss", "held_out_loss"]})})
