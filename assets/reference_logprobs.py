"""`reference_logprobs`: the start checkpoint's log-probs of one shard, each sequence computed once, ever.

`<link>/policy_logprobs` has those of a policy in a chain, of all shards of the manifest that it was trained on: nothing
below the first manifest is cut in shards, so that a chain is made in one Dagster run. Both go through the same cache.
"""

from __future__ import annotations

from typing import Any, cast

import dagster as dg

from alignment.recipe.recipe import Recipe
from alignment.stages.policy_logprobs import STAGE as POLICY_STAGE
from alignment.stages.policy_logprobs import PolicyLogprobsRequest
from alignment.stages.reference_logprobs import STAGE, ReferenceRequest
from assets.building.node import Node
from assets.building.upstream import Upstream

AC = dg.AutomationCondition

# Not when the code version changed: that would score every shard again before a person has accepted the upgrade. A
# night makes these shards afterwards, or `align run` at any time: both compare keys.
changed = AC.newly_missing() | AC.any_deps_match(AC.data_version_changed())

on_new_data = cast(
    "dg.AutomationCondition[dg.AssetKey]",
    # Dagster's own since_last_handled forgets a change that happens while the requested run is in progress: an input
    # that changes A, B, A would leave its dependent at B. Here only a request handles a change, and never a newer one.
    changed.since(AC.newly_requested() & ~changed)
    & ~AC.any_deps_missing()
    & ~AC.any_deps_in_progress()
    & ~AC.in_progress(),
)
"""Once for each change (new, or another data version of an input), when all inputs are there."""


def scoring(recipe: Recipe) -> dict[str, Any]:
    """The fields in which all requests for a recipe's log-probs are equal: every sequence is then scored once."""
    coupled = any(link.method.coupled for link in recipe.links)
    return {
        "tokens": recipe.tokens,
        "precision": recipe.reference.precision,
        "batch_tokens": recipe.reference.batch_tokens,
        "sharded": recipe.reference.sharded,
        "tf32": recipe.dpo.tf32,
        "quantise": recipe.reference_quantise,
        "first_tokens": any(link.method.first_tokens for link in recipe.links),
        "held_out_fraction": recipe.held_out_fraction if coupled else None,
    }


def reference_logprobs(recipe: Recipe) -> Node:
    """The node of the cached log-probs under the reference, shard by shard."""
    checkpoint, spoken = recipe.start, recipe.spoken_start

    def request(upstream: Upstream, shard: str | None) -> ReferenceRequest:
        return ReferenceRequest(
            checkpoint=upstream(checkpoint), shard=upstream("preference_shard", shard), **scoring(recipe)
        )

    return Node(
        name="reference_logprobs",
        phase="reference",
        stage=STAGE,
        description=(
            f"Log-probs of labelled completions, and of their partners', under the {spoken}, cached by sequence."
            if recipe.method.coupled
            else f"Log-probs of chosen and rejected completions under the {spoken}, cached by sequence."
        ),
        kinds=frozenset({"pytorch", "parquet"}),
        needs=(checkpoint, "preference_shard"),
        request=request,
        partitioned=True,
        pool=recipe.pools.reference,
        automation=on_new_data,
    )


def policy_logprobs(recipe: Recipe, name: str, policy: str, manifest: str) -> Node:
    """The node of that name: the log-probs of a manifest's shards under a policy, both given by their nodes' names."""

    def request(upstream: Upstream, shard: str | None) -> PolicyLogprobsRequest:
        return PolicyLogprobsRequest(checkpoint=upstream(policy), manifest=upstream(manifest), **scoring(recipe))

    return Node(
        name=name,
        phase="train",
        stage=POLICY_STAGE,
        description=f"Log-probs of the rows of all shards under {policy}, cached by sequence.",
        kinds=frozenset({"pytorch", "parquet"}),
        needs=(policy, manifest),
        request=request,
        pool=recipe.pools.reference,
    )
