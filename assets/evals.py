"""`<model>_evals/<suite>`: scores per sample; no GPU."""

from __future__ import annotations

from pathlib import Path

from alignment.recipe.evaluation import Suite
from alignment.recipe.recipe import Recipe
from alignment.store import Artifact, Commit
from assets.building.node import Node, Shown
from assets.building.show import table
from assets.building.upstream import Upstream
from assets.pins import suite_spec
from assets.responses import spoken
from eval.stages.scores import STAGE, ScoresRequest
from eval.suites import suite_named
from eval.summaries import Number, ScoresSummary


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
        stage=STAGE,
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
