"""`<model>_responses`: a checkpoint's answers to every suite, from one model load."""

from __future__ import annotations

from typing import Any

from alignment.recipe.recipe import Recipe
from alignment.store import Artifact
from assets.building.node import Node
from assets.building.upstream import Upstream
from assets.pins import suite_spec
from eval.ranking.scorers import Reading
from eval.report.guards import RESPONSES
from eval.stages.responses import STAGE, ResponsesRequest
from resources.compute import check_processes
from resources.pools import Pools

REWARD_MODEL = "reward_model"
"""The node of the recipe's reward model."""


def needed_to_choose(recipe: Recipe) -> tuple[str, ...]:
    """The node that chooses among answers, where they are chosen."""
    return () if recipe.evals.best_of is None else (REWARD_MODEL,)


def responses_request(recipe: Recipe, pools: Pools, checkpoint: Artifact, upstream: Upstream) -> ResponsesRequest:
    """The request for a checkpoint's answers under the recipe's settings."""
    check_processes(recipe, pools)
    chosen: dict[str, Any] = {}
    if recipe.evals.best_of is not None:
        reading = Reading(
            tokens=recipe.tokens, precision=recipe.evals.precision, batch_tokens=recipe.evals.batch_tokens
        )
        chosen = {"best_of": recipe.evals.best_of, "reward_model": upstream(REWARD_MODEL), "reading": reading}
    suites = {name: suite_spec(name, suite) for name, suite in recipe.evals.selected().items()}
    return ResponsesRequest(
        checkpoint=checkpoint,
        suites={name: spec.for_answering() for name, spec in suites.items()},
        seed=recipe.seed,
        precision=recipe.evals.precision,
        batch_tokens=recipe.evals.batch_tokens,
        sharded=recipe.evals.sharded,
        generate=recipe.evals.generate,
        tokens=recipe.tokens.writing(),
        **chosen,
    )


BASELINES = {"sft_checkpoint": "sft", "base_model": "base"}
"""Where a policy may start, and how the assets are named that measure it there: `sft_responses`, `base_evals/…`."""


def baseline_of(recipe: Recipe) -> str:
    """The name of the model that the recipe's policy is compared with: `sft`, or `base` where it starts from that."""
    return BASELINES[recipe.start]


def responses(recipe: Recipe, pools: Pools, model: str) -> Node:
    """The node of the recipe's model of that name: `policy`, or that of `baseline_of`."""
    checkpoint = recipe.start if model == baseline_of(recipe) else f"{model}_checkpoint"

    def request(upstream: Upstream, shard: str | None) -> ResponsesRequest:
        return responses_request(recipe, pools, upstream(checkpoint), upstream)

    return Node(
        name=f"{model}_responses",
        phase="train",
        stage=STAGE,
        description=f"What the {spoken(recipe, model)} answers to every item of the recipe's suites.",
        kinds=frozenset({"pytorch", "json"}),
        needs=(checkpoint, *needed_to_choose(recipe)),
        request=request,
        pool=recipe.pools.responses,
        guards=RESPONSES,
    )


def spoken(recipe: Recipe, model: str) -> str:
    """A model's name in a sentence."""
    return recipe.spoken_start if model == baseline_of(recipe) else model
