"""`base_model`, `sft_dataset` and `sft_checkpoint`: from a pretrained model to where preference training starts."""

from __future__ import annotations

from pathlib import Path

from alignment.data.files import pin_files
from alignment.data.hub import pin_hub
from alignment.models.pin import pin_model
from alignment.recipe.recipe import Recipe
from alignment.recipe.training import SftTraining
from alignment.stages.base_model import STAGE as BASE_STAGE
from alignment.stages.base_model import BaseModelRequest
from alignment.stages.sft_checkpoint import STAGE, SftRequest
from alignment.stages.sft_dataset import STAGE as DATASET_STAGE
from alignment.stages.sft_dataset import SftDatasetRequest
from alignment.stages.stage import SftSummary
from alignment.store import Commit
from assets.building.node import Node, Shown
from assets.building.show import curves
from assets.building.upstream import Upstream
from resources.pools import Pools


def base_model(recipe: Recipe) -> Node:
    """The node of the recipe's pretrained model."""

    def request(upstream: Upstream, shard: str | None) -> BaseModelRequest:
        return BaseModelRequest(pin=pin_model(recipe.base_model), seed=recipe.seed)

    return Node(
        name="base_model",
        phase="base",
        stage=BASE_STAGE,
        description="The pretrained model as a pinned snapshot: weights, configuration, tokenizer, chat template.",
        kinds=frozenset({"huggingface", "safetensors"}),
        needs=(),
        request=request,
        is_checkpoint=True,
    )


def sft_dataset(recipe: Recipe) -> Node:
    """The node of the conversations for SFT."""
    sft = recipe.sft
    if sft is None or (source := sft.dataset) is None:
        raise ValueError("a recipe that trains no SFT checkpoint has no sft_dataset")

    def request(upstream: Upstream, shard: str | None) -> SftDatasetRequest:
        return SftDatasetRequest(
            files=pin_files(source.files, "demonstrations") if source.files else [],
            hub=pin_hub(source) if source.hub else None,
            embedded=source.embedded,
            seed=recipe.seed,
            max_rows=sft.max_rows,
            held_out_fraction=sft.held_out_fraction,
            withdrawn=tuple(sorted(upstream.withdrawn().demonstrations)),
        )

    return Node(
        name="sft_dataset",
        phase="base",
        stage=DATASET_STAGE,
        description="Conversations for supervised fine-tuning; rows that cannot be used are listed with the reason.",
        kinds=frozenset({"parquet"}),
        needs=(),
        request=request,
    )


def sft_checkpoint(recipe: Recipe, pools: Pools) -> Node:
    """The node of the SFT checkpoint."""
    if (sft := recipe.sft) is None:
        raise ValueError("a recipe without SFT has no sft_checkpoint")
    adopted = sft.adopt

    def request(upstream: Upstream, shard: str | None) -> SftRequest:
        return SftRequest(
            base=None if adopted else upstream("base_model"),
            dataset=None if adopted else upstream("sft_dataset"),
            adopt=pin_model(adopted) if adopted else None,
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
