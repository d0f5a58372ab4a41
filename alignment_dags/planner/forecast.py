"""What bringing a recipe up to date will take, stage by stage, before anything runs; what is not known is None."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from alignment.errors import BadInput
from alignment.models.checkpoint import CONFIG_FILE, read_config
from alignment.models.size import forward_bytes, parameter_counts, training_bytes
from alignment.recipe import Optimisation, Recipe
from alignment.store import Commit, Store
from alignment_dags.run.plan import Planned, plan
from assets.building.node import Node
from assets.graph import nodes_of
from eval.stages.evaluation_report import STAGE as REPORT
from eval.stages.scores import STAGE as SCORES
from resources.pools import Pool, Pools

GIB = 2**30
LAST = 5  # commits that a time is the mean of
NO_ACTIVATIONS = "activations come on top"


@dataclass(frozen=True)
class Figure:
    """A number, None where it is not known, and how it was reached or why it was not."""

    value: float | None
    how: str


@dataclass(frozen=True)
class StageForecast:
    """One node: its artifacts that stand, those to be made at most, and what these take.

    `memory_gib` is that of one device, `fits` whether its pool's devices hold it; `slot_seconds` adds up the time of a
    slot over all artifacts to be made; `cost` is in USD, as the prices of pools.yaml are.
    """

    stage: str
    pool: str | None
    current: int
    to_make: int
    memory_gib: Figure
    fits: bool | None
    slot_seconds: Figure
    cost: Figure


class History:
    """What a recipe has made so far; each kind is read once, however many nodes make it."""

    def __init__(self, store: Store, recipe: str) -> None:
        self.store = store
        self.recipe = recipe
        self._kinds: dict[str, list[Commit]] = {}

    def latest_first(self, node: Node) -> list[Commit]:
        """What this node made, or one like it: of scores only those of its suite."""
        made = self._kind(node.stage.kind)
        if node.stage.kind != SCORES.kind:
            return made
        suite = node.name.partition("/")[2]
        return [commit for commit in made if suite in self._suites.get(commit.key, set())]

    def _kind(self, kind: str) -> list[Commit]:
        if kind not in self._kinds:
            made = (one for one in self.store.commits(kind) if one.environment.get("recipe") == self.recipe)
            self._kinds[kind] = sorted(made, key=lambda commit: commit.started_at, reverse=True)
        return self._kinds[kind]

    @cached_property
    def _suites(self) -> dict[str, set[str]]:
        """Key of scores to their suite, as the refs name it and the reports that compared them."""
        found: dict[str, set[str]] = {}
        for model in ("sft", "policy", "champion"):
            for suite, ref in self.store.read_refs(self.recipe, f"{model}_evals").items():
                found.setdefault(ref.artifact.key, set()).add(suite)
        for report in self._kind(REPORT.kind):
            for name, scores in report.inputs.items():
                compared, _, suite = name.partition(".")
                if compared.endswith("_scores"):
                    found.setdefault(scores.key, set()).add(suite)
        return found


def forecast(recipe: Recipe, pools: Pools, store: Store) -> list[StageForecast]:
    """Every node of the recipe, upstream first. Raises `BadInput` for sources a person has to mend."""
    nodes = nodes_of(recipe, pools)
    planned = plan(recipe, nodes, store)
    config, why = model_config(recipe, planned, store)
    history = History(store, recipe.name)
    return [_stage(node, recipe, pools, history, planned, config, why) for node in nodes]


def model_config(recipe: Recipe, planned: list[Planned], store: Store) -> tuple[dict[str, Any] | None, str]:
    """The model's config.json and where it was read; None, and why, where it is not at hand."""
    for one in planned:
        if one.node.name in ("sft_checkpoint", "base_model") and one.commit is not None:
            return json.loads(store.read(one.commit.artifact, CONFIG_FILE)), f"config.json of {one.node.name}"
    source = recipe.sft.adopt or recipe.base_model
    if source.path is not None:
        return read_config(source.path), f"config.json in {source.path}"
    return None, "the model is not in the store yet"


def _stage(
    node: Node,
    recipe: Recipe,
    pools: Pools,
    history: History,
    planned: list[Planned],
    config: dict[str, Any] | None,
    why: str,
) -> StageForecast:
    mine = [one for one in planned if one.node.name == node.name]
    to_make = sum(one.state in ("missing", "waiting") for one in mine)
    pool = None if node.pool is None else pools[node.pool]
    memory = Figure(None, why) if config is None else _memory(node, recipe, config, why)
    room = None if pool is None else pool.memory_gib
    seconds = _seconds(history.latest_first(node) if to_make else [], to_make)
    return StageForecast(
        stage=node.name,
        pool=node.pool,
        current=len(mine) - to_make,
        to_make=to_make,
        memory_gib=memory,
        fits=None if memory.value is None or room is None else memory.value <= room,
        slot_seconds=seconds,
        cost=_cost(pool, seconds),
    )


def _memory(node: Node, recipe: Recipe, config: dict[str, Any], source: str) -> Figure:
    trained: dict[str, Optimisation] = {"policy_checkpoint": recipe.dpo}
    if recipe.sft.adopt is None:
        trained["sft_checkpoint"] = recipe.sft
    run = {
        "reference_logprobs": recipe.reference.precision,
        "responses": recipe.evals.precision,
        "policy_divergence": recipe.evals.precision,  # policy and SFT checkpoint, one after the other
        "registered_model": recipe.evals.precision,  # it answers the smoke prompt
    }
    if node.stage.name == "responses" and recipe.evals.generate.kind == "endpoint":
        return Figure(None, "loads no model: an endpoint answers")
    try:
        if (settings := trained.get(node.name)) is not None:
            whole, part = parameter_counts(config, settings.lora)
            size = training_bytes(whole, part, settings.precision)
            what = (
                f"{whole:,} parameters, {part:,} of them trained"
                if part == whole
                else (f"{whole:,} parameters and {part:,} of the adapter")
            )
        elif (precision := run.get(node.stage.name)) is not None:
            whole, _ = parameter_counts(config)
            size, what = forward_bytes(whole, precision), f"{whole:,} parameters in {precision}"
        else:
            return Figure(None, "loads no model")
    except BadInput as error:
        return Figure(None, str(error))
    return Figure(size / GIB, f"{what} ({source}); {NO_ACTIVATIONS}")


def _seconds(made: list[Commit], to_make: int) -> Figure:
    """As long as the recipe's last artifacts of this stage took, on the device of the latest."""
    if not to_make:
        return Figure(0.0, "everything is there")
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
