"""What a recipe's next run will need and cost, stage by stage, before it starts; unknown numbers are None."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from alignment.data.hub import HubUnreachable, asking_briefly
from alignment.errors import BadInput
from alignment.models.checkpoint import CONFIG_FILE, read_config
from alignment.models.pin import hub_config
from alignment.models.size import forward_bytes, parameter_counts, training_bytes
from alignment.recipe import Optimisation, Recipe
from alignment.store import Commit, Store
from alignment_dags.run.plan import Planned, plan
from alignment_dags.run.workspace import Workspace
from assets.building.node import Node
from assets.responses import BASELINES
from eval.stages.evaluation_report import STAGE as REPORT
from eval.stages.scores import STAGE as SCORES
from resources.pools import Pool

GIB = 2**30
HUB_SECONDS = 5.0  # to wait for an answer of the hub
LAST = 5  # a time is the mean of the last commits
NO_ACTIVATIONS = "activations come on top"


@dataclass(frozen=True)
class Figure:
    """A number, or None if it is unknown, and how it was computed or why it is unknown."""

    value: float | None
    how: str


@dataclass(frozen=True)
class StageForecast:
    """One node: its current artifacts, the number to make at most, and what they need.

    `current` and `to_make` are None if the hub had to say which artifacts the recipe needs and was not reached.
    `memory_gib` is the memory of one device, and `fits` whether the pool's devices have that much. `slot_seconds` is
    the time of a slot, summed over all artifacts to make. `cost` is in USD, like the prices in pools.yaml.
    """

    stage: str
    pool: str | None
    current: int | None
    to_make: int | None
    memory_gib: Figure
    fits: bool | None
    slot_seconds: Figure
    cost: Figure


class History:
    """The artifacts that a recipe has made so far; each kind is read once."""

    def __init__(self, store: Store, recipe: str) -> None:
        self.store = store
        self.recipe = recipe
        self._kinds: dict[str, list[Commit]] = {}

    def latest_first(self, node: Node) -> list[Commit]:
        """Artifacts of this node's kind, latest first; of scores only those of its suite."""
        made = self._kind(node.stage.kind)
        if node.stage.kind != SCORES.kind:
            return made
        suite = node.name.partition("/")[2]
        return [commit for commit in made if suite in self._suites.get(commit.key, set())]

    def _kind(self, kind: str) -> list[Commit]:
        if kind not in self._kinds:
            made = (commit for commit in self.store.commits(kind) if commit.environment.get("recipe") == self.recipe)
            self._kinds[kind] = sorted(made, key=lambda commit: commit.started_at, reverse=True)
        return self._kinds[kind]

    @cached_property
    def _suites(self) -> dict[str, set[str]]:
        """Key of scores to their suite, by the refs and by the reports that compared them."""
        suites: dict[str, set[str]] = {}
        for model in (*BASELINES.values(), "policy", "champion"):
            for suite, ref in self.store.read_refs(self.recipe, f"{model}_evals").items():
                suites.setdefault(ref.artifact.key, set()).add(suite)
        for report in self._kind(REPORT.kind):
            for name, scores in report.inputs.items():
                compared, _, suite = name.partition(".")
                if compared.endswith("_scores"):
                    suites.setdefault(scores.key, set()).add(suite)
        return suites


def forecast(workspace: Workspace, config: Path | None = None) -> list[StageForecast]:
    """Every node of the recipe, upstream first; `config` is a config.json of the model, used before any other.

    Needs no weights and no hub: numbers that only the hub could give are unknown without it. Raises `BadInput` for
    sources with a mistake.
    """
    unreached: dict[str, str] = {}
    with asking_briefly(HUB_SECONDS):
        planned = plan(workspace, unreached=unreached)
        shape = model_config(workspace, planned) if config is None else Shape(read_config(config), str(config))
    unsure = _unsure(workspace, unreached)
    history = History(workspace.store, workspace.recipe.name)
    return [_stage(node, workspace, history, planned, shape, unsure.get(node.name)) for node in workspace.nodes]


@dataclass(frozen=True)
class Shape:
    """The model's configuration and where it was read; or None, and why there is none."""

    config: dict[str, Any] | None
    source: str


def model_config(workspace: Workspace, planned: list[Planned]) -> Shape:
    """The model's configuration: from the store, else from the recipe's model on disk or on the hub."""
    for step in planned:
        if step.node.name in ("sft_checkpoint", "base_model") and step.commit is not None:
            config = json.loads(workspace.store.read(step.commit.artifact, CONFIG_FILE))
            return Shape(config, f"config.json of {step.node.name}")
    sft = workspace.recipe.sft
    source = (sft and sft.adopt) or workspace.recipe.base_model
    if source.path is not None:
        return Shape(read_config(source.path), f"config.json in {source.path}")
    if source.hub is None:
        from alignment.quickstart.model import MAX_LENGTH, micro_config, micro_tokenizer

        return Shape(micro_config(micro_tokenizer(MAX_LENGTH)).to_dict(), "the embedded micro model")
    try:
        return Shape(hub_config(source.hub, source.revision), f"config.json of {source.hub} on the hub")
    except (HubUnreachable, BadInput) as error:
        return Shape(None, f"{error}; --config takes its config.json")


def _unsure(workspace: Workspace, unreached: dict[str, str]) -> dict[str, str]:
    """Nodes whose needed artifact may or may not be in the store, and the source that was not reached to find out."""
    reasons: dict[str, str] = {}
    for node in workspace.nodes:
        above = (reasons[need] for need in node.needs if need in reasons)
        reason = unreached.get(node.name) or next(above, None)
        if reason is not None and next(workspace.store.commits(node.stage.kind), None) is not None:
            reasons[node.name] = reason
    return reasons


def _stage(
    node: Node,
    workspace: Workspace,
    history: History,
    planned: list[Planned],
    shape: Shape,
    unsure: str | None,
) -> StageForecast:
    mine = [step for step in planned if step.node.name == node.name]
    to_make = sum(step.state in ("missing", "waiting") for step in mine)
    pool = None if node.pool is None else workspace.pools[node.pool]
    memory = _memory(node, workspace.recipe, shape)
    room = None if pool is None else pool.memory_gib
    if unsure is not None:
        seconds = Figure(None, unsure)
    else:
        seconds = _seconds(history.latest_first(node) if to_make else [], to_make)
    return StageForecast(
        stage=node.name,
        pool=node.pool,
        current=None if unsure else sum(step.commit is not None for step in mine),
        to_make=None if unsure else to_make,
        memory_gib=memory,
        fits=None if memory.value is None or room is None else memory.value <= room,
        slot_seconds=seconds,
        cost=_cost(pool, seconds),
    )


def _memory(node: Node, recipe: Recipe, shape: Shape) -> Figure:
    trained: dict[str, Optimisation] = {"policy_checkpoint": recipe.dpo}
    if recipe.sft is not None and recipe.sft.adopt is None:
        trained["sft_checkpoint"] = recipe.sft
    run = {
        "reference_logprobs": recipe.reference.precision,
        "responses": recipe.evals.precision,
        "policy_divergence": recipe.evals.precision,  # policy and its start, one after the other
        "registered_model": recipe.evals.precision,  # it answers the smoke prompt
    }
    if node.stage.name == "responses" and recipe.evals.generate.kind == "endpoint":
        return Figure(0.0, "loads no model: an endpoint answers")
    settings, precision = trained.get(node.name), run.get(node.stage.name)
    if settings is None and precision is None:
        return Figure(0.0, "loads no model")
    if shape.config is None:
        return Figure(None, shape.source)
    try:
        if settings is not None:
            whole, part = parameter_counts(shape.config, settings.lora)
            size = training_bytes(whole, part, settings.precision)
            what = (
                f"{whole:,} parameters, {part:,} of them trained"
                if part == whole
                else (f"{whole:,} parameters and {part:,} of the adapter")
            )
        else:
            assert precision is not None
            whole, _ = parameter_counts(shape.config)
            size, what = forward_bytes(whole, precision), f"{whole:,} parameters in {precision}"
    except BadInput as error:
        return Figure(None, str(error))
    return Figure(size / GIB, f"{what} ({shape.source}); {NO_ACTIVATIONS}")


def _seconds(made: list[Commit], to_make: int) -> Figure:
    """The mean time of the recipe's last artifacts of this stage, on the device of the latest."""
    if not to_make:
        return Figure(0.0, "nothing is to be made")
    if not made:
        return Figure(None, "this recipe never made one")
    device = made[0].environment.get("device", "")
    same = [commit for commit in made if commit.environment.get("device", "") == device][:LAST]
    mean = sum(commit.seconds for commit in same) / len(same)
    where = device or "its device"
    return Figure(to_make * mean, f"{to_make} × {mean:.1f} s, the mean of the last {len(same)} on {where}")


def _cost(pool: Pool | None, seconds: Figure) -> Figure:
    if pool is None:
        return Figure(None, "runs in no pool")
    if not pool.price_per_hour:
        return Figure(None, "its pool names no price")
    if seconds.value is None:
        return Figure(None, seconds.how)
    return Figure(seconds.value * pool.price_per_hour / 3600, f"{pool.price_per_hour:g} an hour of a slot")
