"""`policy_checkpoint`: the aligned model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import mul
from pathlib import Path

from alignment.guards import policy_guards, setup_notes
from alignment.methods import METHOD
from alignment.recipe.generate import OnPolicy
from alignment.recipe.recipe import Recipe
from alignment.recipe.training import Dpo
from alignment.stages.execute import load_stage
from alignment.stages.policy import DpoRequest, Rollouts
from alignment.stages.stage import PolicySummary, scored_by
from alignment.store import Commit, MissingArtifact
from assets.building.node import Node, Shown, all_rows
from assets.building.show import curves
from assets.building.upstream import Upstream
from assets.pins import prompt_sources, suite_items
from resources.pools import Pools

OF_CHAMPION = "champion/preference_manifest"
"""The node of the set whose reference log-probs are the champion's, once there is one."""


@dataclass(frozen=True)
class Policy:
    """One training on preferences in a graph: the node's name, and the names of the nodes it is made from.

    The policy that is evaluated and registered is `policy_checkpoint`; others stand in a group of their own, as
    `link_1/policy_checkpoint`. What is made after the first manifest is in the phase `train`, in no shards.
    """

    name: str
    settings: Dpo
    start: str
    """The node of the checkpoint that training starts from: the SFT checkpoint, the base model or another policy."""
    manifest: str = "preference_manifest"
    reference: str | None = None
    """The node of the checkpoint that the manifest's reference log-probs are of, where it is not `start`. The champion,
    which no node makes, is known by the manifest itself."""
    rows: Callable[[float], float] = all_rows
    """How many of the recipe's rows its manifest holds, for the plan."""
    seeds_on: int = 0
    """What is added to the recipe's seed: only the order of its rows, and dropout, are then other draws."""

    @property
    def group(self) -> str:
        """What the names of nodes that belong to this policy begin with."""
        return self.name.removesuffix("policy_checkpoint")


def policies_of(recipe: Recipe) -> tuple[Policy, ...]:
    """The trained policies of a recipe, each after that which it starts from; the last is `policy_checkpoint`, or
    `trained/policy_checkpoint` where that is an average of it and of others."""
    policies = [Policy(_link_name(recipe, 1), recipe.links[0].as_dpo(), recipe.start)]
    if recipe.refers_to_champion:
        policies = [replace(policies[0], manifest=OF_CHAMPION)]
    for number, link in enumerate(recipe.later_links, start=2):
        refers = link.method.needs_reference
        own = link.select is not None or (refers and link.reference == "start")
        share = 1.0 if link.select is None else link.select.disagreement
        policies.append(
            Policy(
                name=_link_name(recipe, number),
                settings=link.as_dpo(),
                start=policies[-1].name,
                manifest=f"link_{number}/preference_manifest" if own else "preference_manifest",
                reference=recipe.start if refers and link.reference == "sft" else None,
                rows=partial(mul, share),
            )
        )
    return tuple(policies)


def _link_name(recipe: Recipe, number: int) -> str:
    if number < len(recipe.links):
        return f"link_{number}/policy_checkpoint"
    return "trained/policy_checkpoint" if recipe.merge or recipe.soups else "policy_checkpoint"


def policy_checkpoint(recipe: Recipe, pools: Pools, policy: Policy) -> Node:
    """The node of a policy."""
    settings, start, method = policy.settings, policy.start, policy.settings.method
    on_policy = recipe.on_policy if method.on_policy else None
    beside = ("sft_dataset",) if settings.sft_rows_fraction else ()
    reference = () if policy.reference is None else (policy.reference,)

    def request(upstream: Upstream, shard: str | None) -> DpoRequest:
        pinned = upstream(policy.manifest)
        refers = upstream(policy.reference) if policy.reference else None
        if policy.manifest == OF_CHAMPION:
            refers = scored_by(upstream.store.commit_of, pinned)
        return DpoRequest(
            manifest=pinned,
            checkpoint=upstream(start),
            settings=settings,
            tokens=recipe.tokens,
            seed=recipe.seed + policy.seeds_on,
            world_size=pools[recipe.pools.policy].world_size,
            pass_tokens=recipe.reference.batch_tokens,
            sft_dataset=upstream("sft_dataset") if beside else None,
            reference=refers,
            rollouts=None if on_policy is None else rollouts_of(recipe, on_policy, upstream),
        )

    called = METHOD.elsewhere.get(settings.loss, settings.loss)
    spoken = recipe.spoken_start if start == recipe.start else start
    against = "against cached reference log-probs" if method.needs_reference else "without a reference"
    description = f"The policy: preference training (method: {called}) from the {spoken}, {against}."
    if on_policy is not None:
        description = f"The policy: trained on answers that it samples itself (method: {called}), from the {spoken}."
    return Node(
        name=policy.name,
        phase="train",
        stage=load_stage(method.stage),
        description=description,
        kinds=frozenset({"pytorch", "huggingface"}),
        needs=(policy.manifest, start, *reference, *beside),
        request=request,
        show=show,
        pool=recipe.pools.policy,
        is_checkpoint=True,
        training=settings,
        rows=policy.rows,
        guards=policy_guards(settings, recipe.tokens),
    )


def rollouts_of(recipe: Recipe, settings: OnPolicy, upstream: Upstream) -> Rollouts:
    """What an on-policy method is asked to sample, with the prompts as they are now."""
    return Rollouts(
        prompts=tuple(prompt_sources(settings.prompts, recipe.seed, "on_policy.prompts")),
        n=settings.n,
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        scores=settings.score,
        length_penalty=settings.length_penalty,
        kl_weight=settings.kl_weight,
        held_out_fraction=recipe.held_out_fraction,
        suites={name: suite_items(name, suite, recipe.seed) for name, suite in recipe.evals.selected().items()} or None,
        withdrawn=tuple(sorted(upstream.withdrawn().rows)),
        max_prompts=settings.prompts.max_prompts,
    )


def repeats_of(recipe: Recipe) -> tuple[Policy, ...]:
    """The policy again, with other seeds, to see how much it varies from run to run (`gate.seeds`)."""
    last = policies_of(recipe)[-1]
    numbers = range(1, recipe.repeats + 1)
    return tuple(replace(last, name=f"seed_{number}/{last.name}", seeds_on=number) for number in numbers)


def setup_of(recipe: Recipe, upstream: Upstream) -> list[str]:
    """What is wrong with data and start checkpoint before a training, where both are made already."""
    first = policies_of(recipe)[0]
    manifest, start = upstream.get(first.manifest), upstream.get(first.start)
    if manifest is None or start is None:
        return []
    try:
        return setup_notes(upstream.store, manifest, start, first.settings, recipe.tokens)
    except MissingArtifact:  # erased, or collected: the next run makes it again, and its guard says it then
        return []


def show(commit: Commit, folder: Path) -> Shown:
    """Curves of the training."""
    history = PolicySummary.of(commit).history
    named = {"loss": "loss", "reward margin": "margin", "accuracy": "accuracy"}
    panels = {title: [name, f"held_out_{name}"] for title, name in named.items()}
    if any("sft_loss" in record for record in history):
        panels["loss of SFT rows"] = ["sft_loss"]
    if any("score" in record for record in history):
        panels = {"score": ["score"], "tokens of an answer": ["answer_tokens"], "equal scores": ["equal_scores"]}
    return Shown(history=history, markdown={"training": curves(history, panels)} if history else {})
