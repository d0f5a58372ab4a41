"""`sft_dataset`: validated conversations for fine-tuning, and the rejected rows with the reason."""

from __future__ import annotations

from alignment.data.files import pin_files
from alignment.data.hub import pin_hub
from alignment.errors import named_in
from alignment.recipe.recipe import Recipe
from alignment.stages.sft_dataset import STAGE, SftDatasetRequest
from assets.building.node import Node
from assets.building.upstream import Upstream


def sft_dataset(recipe: Recipe) -> Node:
    """The node of the conversations for SFT."""
    sft = recipe.sft
    if sft is None or (source := sft.dataset) is None:
        raise ValueError("a recipe that trains no SFT checkpoint has no sft_dataset")

    def request(upstream: Upstream, shard: str | None) -> SftDatasetRequest:
        with named_in("sft.dataset.files"):
            files = pin_files(source.files, "demonstrations") if source.files else []
        return SftDatasetRequest(
            files=files,
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
        stage=STAGE,
        description="Conversations for supervised fine-tuning; rows that cannot be used are listed with the reason.",
        kinds=frozenset({"parquet"}),
        needs=(),
        request=request,
    )
