"""`base_model`: the pretrained model, pinned as a snapshot in the store."""

from __future__ import annotations

from alignment.models.pin import pin_model
from alignment.recipe.recipe import Recipe
from alignment.stages.base_model import STAGE, BaseModelRequest
from assets.building.node import Node
from assets.building.upstream import Upstream


def base_model(recipe: Recipe) -> Node:
    """The node of the recipe's pretrained model."""

    def request(upstream: Upstream, shard: str | None) -> BaseModelRequest:
        return BaseModelRequest(pin=pin_model(recipe.base_model), seed=recipe.seed)

    return Node(
        name="base_model",
        phase="base",
        stage=STAGE,
        description="The pretrained model as a pinned snapshot: weights, configuration, tokenizer, chat template.",
        kinds=frozenset({"huggingface", "safetensors"}),
        needs=(),
        request=request,
        is_checkpoint=True,
    )
