"""`policy_divergence`: how far the policy has moved from where it started, in nats."""

from __future__ import annotations

from alignment.recipe.recipe import Recipe
from alignment.stages.stage import starts_of
from assets.building.node import Node
from assets.building.upstream import Upstream
from eval.stages.policy_divergence import STAGE, DivergenceRequest


def pool_of(recipe: Recipe) -> str:
    """The pool in which the policy is loaded to answer: for its divergence, and for the check before a registration. If
    a server answers the recipe's suites, it is the reference pool, as that of the answers starts one process."""
    return recipe.pools.responses if recipe.evals.generate.kind == "transformers" else recipe.pools.reference


def policy_divergence(recipe: Recipe) -> Node:
    """The node of the divergence of the policy from where it started: its SFT checkpoint, the adopted model or the base
    model."""

    def request(upstream: Upstream, shard: str | None) -> DivergenceRequest:
        policy = upstream.store.commit_of(upstream("policy_checkpoint"))
        return DivergenceRequest(
            policy=policy.artifact,
            sft=starts_of(upstream.store.commit_of, policy)[-1].artifact,
            manifest=policy.inputs["manifest"],
            seed=recipe.seed,
            precision=recipe.evals.precision,
            batch_tokens=recipe.evals.batch_tokens,
            sharded=recipe.evals.sharded,
            tokens=recipe.tokens.writing(),
        )

    return Node(
        name="policy_divergence",
        phase="train",
        stage=STAGE,
        description=f"KL(policy ‖ {recipe.spoken_start}) on held-out prompts, from one sampled response each.",
        kinds=frozenset({"pytorch", "parquet"}),
        needs=("policy_checkpoint",),
        request=request,
        pool=pool_of(recipe),
    )
