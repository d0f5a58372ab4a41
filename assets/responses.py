"""`<model>_responses`: a checkpoint's answers to every suite, from one model load."""

from __future__ import annotations

from typing import Any

from alignment.data.files import pin_file
from alignment.data.hub import pin_hub
from alignment.data.overlap import SuiteItems
from alignment.recipe import DataSource, Recipe, Suite
from alignment.stages import SourceFile
from alignment.store import Artifact
from assets.building.node import Node
from assets.building.upstream import Upstream
from eval.ranking.scorers import Reading
from eval.report.guards import RESPONSES
from eval.stages.responses import STAGE, ResponsesRequest
from eval.suites import SuiteSpec, pin_tasks, suite_named
from resources.compute import check_processes
from resources.pools import Pools


def suite_spec(name: str, suite: Suite) -> SuiteSpec:
    """A recipe's suite with its files pinned by content."""

    def pinned(field: str) -> SourceFile | None:
        path = getattr(suite, field, None)
        return pin_file(path) if path else None

    return SuiteSpec(
        name=name,
        data=pinned("data"),
        hub=hub_source(suite, "split"),
        embedded=suite.embedded,
        limit=suite.limit,
        max_new_tokens=suite.max_new_tokens,
        temperature=suite.temperature,
        top_p=suite.top_p,
        num_fewshot=getattr(suite, "num_fewshot", 0),
        few_shot_data=pinned("few_shot_data"),
        few_shot_hub=hub_source(suite, "few_shot_split"),
        chat_template=getattr(suite, "chat_template", None),
        reference_answers=pinned("reference_answers"),
        judge_prompts=pinned("judge_prompts"),
        baseline_answers=pinned("baseline_answers"),
        scored_by=getattr(suite, "scored_by", "rules"),
        tasks=pin_tasks(folder) if (folder := getattr(suite, "include_path", None)) else (),
    )


def hub_source(suite: Suite, split: str) -> DataSource | None:
    """The split on the hub that a setting of the suite names, pinned to a commit; None for a suite from files."""
    if suite.hub is None or (named := getattr(suite, split, None)) is None:
        return None
    return pin_hub(DataSource(hub=suite.hub, revision=suite.revision, config=suite.config, split=named))


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


def suite_items(name: str, suite: Suite, seed: int) -> SuiteItems:
    """Where all of a suite's items are, also those that a limit leaves unasked."""
    spec = suite_spec(name, suite)
    if spec.hub is None:
        return SuiteItems(file=spec.data, embedded=spec.embedded, seed=seed if spec.embedded else 0)
    asked = suite_named(name, spec.tasks)
    subsets = [asked.task.subset] if asked.task else [task.subset for task in asked.members.values()]
    sources = (spec.hub.model_copy(update={"config": spec.hub.config or subset}) for subset in subsets or [None])
    return SuiteItems(hub=tuple(dict.fromkeys(sources)))


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
        description=f"What the {spoken(model)} answers to every item of the recipe's suites.",
        kinds=frozenset({"pytorch", "json"}),
        needs=(checkpoint, *needed_to_choose(recipe)),
        request=request,
        pool=recipe.pools.responses,
        guards=RESPONSES,
    )


def spoken(model: str) -> str:
    """A model's name in a sentence."""
    return "base model" if model == "base" else f"{model} checkpoint"
