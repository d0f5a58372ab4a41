"""The graph of one recipe: its nodes, upstream first."""

from __future__ import annotations

from collections.abc import Iterator

from alignment.recipe.recipe import Recipe
from assets.base_model import base_model
from assets.building.node import Node
from assets.champion_evals import champion_evals, champion_responses
from assets.champion_reference import against_champion
from assets.evals import evals
from assets.evaluation_report import evaluation_report
from assets.generation import generated_pairs, reward_model, scored_by_reward_model
from assets.merge import merge
from assets.new_rows import new_rows
from assets.policy_checkpoint import Policy, policies_of, policy_checkpoint, repeats_of
from assets.policy_divergence import policy_divergence
from assets.preference_manifest import chained_manifest, preference_manifest
from assets.preference_shard import preference_shard
from assets.reference_logprobs import policy_logprobs, reference_logprobs
from assets.registered_model import registered_model
from assets.responses import baseline_of, responses
from assets.rounds import rounds
from assets.sft_checkpoint import sft_checkpoint
from assets.sft_dataset import sft_dataset
from assets.soups import soups
from assets.sweep import sweep
from resources.pools import Pools


def trainings(recipe: Recipe, pools: Pools) -> Iterator[Node]:
    """From the first manifest to the policy that training makes: in rounds, at several points, or link by link."""
    if recipe.rounds is not None:
        return rounds(recipe, pools)
    return chain(recipe, pools) if recipe.sweep is None else sweep(recipe, pools)


def chain(recipe: Recipe, pools: Pools) -> Iterator[Node]:
    """The recipe's policies, and before each later link the log-probs and the manifest that it needs of its own."""
    before: Policy | None = None
    policies = policies_of(recipe)
    if recipe.refers_to_champion:
        yield from against_champion(recipe, policies[-1].name)
    for policy, link in zip(policies, (None, *recipe.later_links), strict=True):
        if before is not None and link is not None and policy.manifest != "preference_manifest":
            logprobs = f"{before.group}policy_logprobs"
            yield policy_logprobs(recipe, logprobs, before.name, "preference_manifest")
            as_reference = link.method.needs_reference and link.reference == "start"
            share = None if link.select is None else link.select.disagreement
            yield chained_manifest(recipe, policy.manifest, logprobs, as_reference=as_reference, share=share)
        yield policy_checkpoint(recipe, pools, policy)
        before = policy


def again(recipe: Recipe, pools: Pools) -> Iterator[Node]:
    """The trainings with other seeds that a gate asks for, each answered and scored as the policy is."""
    for policy in repeats_of(recipe):
        yield policy_checkpoint(recipe, pools, policy)
        yield responses(recipe, pools, f"{policy.group}policy")
        yield from (evals(recipe, f"{policy.group}policy", *suite) for suite in recipe.evals.selected().items())


def nodes_of(recipe: Recipe, pools: Pools) -> list[Node]:
    """Every node, each after those it needs."""
    # where several candidates are compared with the baseline, it is measured before
    models = ("policy",) if recipe.candidates else (baseline_of(recipe), "policy")
    suites = recipe.evals.selected()
    answering = (*(responses(recipe, pools, model) for model in models), champion_responses(recipe, pools))
    return [
        base_model(recipe),
        *([sft_dataset(recipe)] if recipe.sft and recipe.sft.dataset else []),
        *([sft_checkpoint(recipe, pools)] if recipe.sft else []),
        preference_shard(recipe),
        *([reference_logprobs(recipe)] if recipe.needs_reference else []),
        *generated_pairs(recipe, pools),
        preference_manifest(recipe),
        *(new_rows(recipe) if recipe.evals.new_rows else ()),
        *(reward_model(recipe, pools) if recipe.evals.best_of and not scored_by_reward_model(recipe) else ()),
        *trainings(recipe, pools),
        *(merge(recipe) if recipe.merge else ()),
        *(soups(recipe, pools) if recipe.soups else ()),
        *([policy_divergence(recipe)] if recipe.held_out_fraction else []),
        *(answering if suites else ()),
        *(evals(recipe, model, name, suite) for model in models for name, suite in suites.items()),
        *(champion_evals(recipe, pools, name, suite) for name, suite in suites.items()),
        *again(recipe, pools),
        evaluation_report(recipe, pools),
        registered_model(recipe, pools),
    ]
