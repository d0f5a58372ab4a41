"""`reference_logprobs`: the SFT checkpoint's log-probs of one shard, each sequence computed once, ever."""

from __future__ import annotations

from alignment.methods import method_of
from alignment.recipe import Recipe
from alignment.stages.reference_logprobs import STAGE, ReferenceRequest
from assets.building.automation import on_new_data
from assets.building.node import Node
from assets.building.upstream import Upstream


def reference_logprobs(recipe: Recipe) -> Node:
    """The node of the cached log-probs under the reference, shard by shard."""
    method = method_of(recipe.dpo)

    def request(upstream: Upstream, shard: str | None) -> ReferenceRequest:
        return ReferenceRequest(
            checkpoint=upstream("sft_checkpoint"),
            shard=upstream("preference_shard", shard),
            tokens=recipe.tokens,
            precision=recipe.reference.precision,
            batch_tokens=recipe.reference.batch_tokens,
            sharded=recipe.reference.sharded,
            tf32=recipe.dpo.tf32,
            first_tokens=method.first_tokens,
            held_out_fraction=recipe.held_out_fraction if method.coupled else None,
        )

    return Node(
        name="reference_logprobs",
        phase="reference",
        stage=STAGE,
        description=(
            "Log-probs of labelled completions, and of their partners', under the SFT checkpoint, cached by sequence."
            if method.coupled
            else "Log-probs of chosen and rejected completions under the SFT checkpoint, cached by sequence."
        ),
        kinds=frozenset({"pytorch", "parquet"}),
        needs=("sft_checkpoint", "preference_shard"),
        request=request,
        partitioned=True,
        pool=recipe.pools.reference,
        automation=on_new_data,
    )
