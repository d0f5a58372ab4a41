"""What is measured on a model.

`<model>_responses` are its answers to every suite, from one model load; `<model>_evals/<suite>` their scores, which
need no GPU; `policy_divergence` is how far the policy has moved from where it started, in nats.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignment.recipe.evaluation import Suite
from alignment.recipe.recipe import Recipe
from alignment.stages.stage import starts_of
from alignment.store import Artifact, Commit
from assets.building.node import Node, Shown
from assets.building.show import table
from assets.building.upstream import Upstream
from assets.pins import suite_spec
from eval.ranking.scorers import Reading
from eval.report.guards import RESPONSES
from eval.stages.policy_divergence import STAGE as DIVERGENCE_STAGE
from eval.stages.policy_divergence import DivergenceRequest
from eval.stages.responses import STAGE as RESPONSES_STAGE
from eval.stages.responses import ResponsesRequest
from eval.stages.scores import STAGE as SCORES_STAGE
from eval.stages.scores import ScoresRequest
from eval.suites import suite_named
from eval.summaries import Number, ScoresSummary
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
        stage=RESPONSES_STAGE,
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


def scores_request(
    recipe: Recipe, name: str, suite: Suite, answers: Artifact, earlier: Artifact | None = None
) -> ScoresRequest:
    """The request for a suite's scores under the recipe's settings; `earlier` are those that there are of the suite."""
    spec = suite_spec(name, suite)
    return ScoresRequest(
        earlier=earlier,
        responses=answers,
        suite=spec,
        judge=recipe.judge if recipe.judge is not None and spec.judged(suite_named(name, spec.tasks)) else None,
        seed=recipe.seed,
    )


def asks_an_endpoint(recipe: Recipe) -> bool:
    """Whether the recipe's judge is paid for, so that its judgments are worth looking for."""
    return recipe.judge is not None and recipe.judge.kind != "rubric"


def evals(recipe: Recipe, model: str, name: str, suite: Suite) -> Node:
    """The node of one suite's scores on the answers of a model (`policy`, or that of `baseline_of`)."""

    def request(upstream: Upstream, shard: str | None) -> ScoresRequest:
        earlier = upstream.get(f"{model}_evals/{name}") if asks_an_endpoint(recipe) else None
        return scores_request(recipe, name, suite, upstream(f"{model}_responses"), earlier)

    return Node(
        name=f"{model}_evals/{name}",
        phase="train",
        stage=SCORES_STAGE,
        description=f"Scores of the {spoken(recipe, model)} on {name}, one row a sample and metric.",
        kinds=frozenset({"parquet"}),
        needs=(f"{model}_responses",),
        request=request,
        show=show,
    )


def show(commit: Commit, folder: Path) -> Shown:
    """A table of the metrics, and the samples as a file."""
    metrics = ScoresSummary.of(commit).metrics
    rows = [(name, decimals(metric.value), decimals(metric.stderr)) for name, metric in sorted(metrics.items())]
    return Shown(
        markdown={"metrics": table(("metric", "value", "standard error"), rows)} if rows else {},
        files=[folder / "samples.parquet"],
    )


def decimals(value: Number) -> str:
    """Four decimals; a dash where there is no number."""
    return "-" if value is None else f"{value:.4f}"


def pool_of(recipe: Recipe) -> str:
    """The pool in which the policy answers; the reference pool if an endpoint answers for the recipe's suites."""
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
        stage=DIVERGENCE_STAGE,
        description=f"KL(policy ‖ {recipe.spoken_start}) on held-out prompts, from one sampled response each.",
        kinds=frozenset({"pytorch", "parquet"}),
        needs=("policy_checkpoint",),
        request=request,
        pool=pool_of(recipe),
    )
