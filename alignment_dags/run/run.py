"""`align run`: brings a recipe up to date, phase by phase, and says what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import dagster as dg

from alignment.errors import BadInput
from alignment.recipe import Recipe
from alignment_dags.check import check_suites, missing_eval_files, missing_here
from alignment_dags.recipes import remember
from alignment_dags.retention.withdraw import withdrawn_elsewhere
from alignment_dags.run.launch import RunFailed, Stopped, launch, launches
from alignment_dags.run.plan import Planned, plan
from alignment_dags.run.shards import claim, claim_partitions, drop
from alignment_dags.run.workers import apply_pools, end_dead_runs
from alignment_dags.run.workspace import Phase, Workspace, use_recipe
from assets.building.factory import shards_definition
from assets.evaluation_report import gate_and_baselines
from assets.preference_manifest import withdrawn_shards
from assets.preference_shard import shows_its_kind
from eval.judge.retirement import retirement
from resources.compute import check_processes
from resources.databases import dagster_instance


@dataclass
class Outcome:
    """What `align run` did: the Dagster runs it made and those it ended; `failure` says why it stopped early, and
    `stopped` how far it was when a person interrupted it."""

    workspace: Workspace
    dagster_runs: list[str] = field(default_factory=list)
    ended_runs: list[str] = field(default_factory=list)
    seconds: float = 0.0
    failure: str | None = None
    stopped: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every phase ended well."""
        return self.failure is None and self.stopped is None


def run_recipe(path: Path, say: Callable[[str], None]) -> Outcome:
    """Runs every phase that has something to do. Raises `BadInput` before anything starts, if it can be seen then.

    A step that fails ends the run: `Outcome.failure` says why, and everything made so far stands.
    """
    began = time.monotonic()
    workspace = use_recipe(path)
    recipe, outcome = workspace.recipe, Outcome(workspace)
    gate_and_baselines(recipe, str(path))  # mistakes show before anything starts, here and in the plan
    check_suites(recipe, str(path))
    for line in missing_eval_files(recipe):
        say(f"warning: {line}; the run ends there if it does not come")
    check_processes(recipe, workspace.pools)  # not in the plan, which says how a model is cut
    if any(one.state in ("missing", "waiting") for one in plan(workspace)):
        for line in missing_here(recipe, workspace.pools):
            say(f"warning: {line}; the run ends where it is needed")
    if warning := retirement(recipe.judge, date.today()):
        say(f"warning: {warning}")
    claim(workspace.store, recipe)
    remember(path, recipe)
    with dagster_instance() as instance:
        outcome.ended_runs = end_dead_runs(instance)
        for run_id in outcome.ended_runs:
            say(f"ended run {run_id[:8]}: its process is gone")
        apply_pools(instance, workspace.pools)
        if left_out := follow_source(instance, workspace):
            gone, by_hand = split_by_hand(workspace, left_out)
            if gone:
                stays = "their text stays until `align prefs withdraw --shard NAME`"
                say(f"left out, as the source has them no more: {', '.join(gone)} ({stays})")
            if by_hand:
                say(f"left out, as they were withdrawn: {', '.join(by_hand)}")
        phases = list(workspace.phases)
        if not shows_its_kind(recipe.preferences):  # what the method cannot train on shows before SFT trains
            phases.sort(key=lambda phase: phase.name != "shards")
        for phase in phases:
            try:
                for tags, chosen in launches(instance, workspace, phase):
                    outcome.dagster_runs.append(launch(instance, recipe, phase, chosen, tags, say))
            except RunFailed as failure:
                outcome.failure = str(failure)
                outcome.dagster_runs.append(failure.run_id)
                break
            except Stopped as stop:
                outcome.stopped = str(stop)
                outcome.dagster_runs.append(stop.run_id)
                break
            if phase.name == "shards":
                for line in withdrawn_elsewhere(workspace.store, recipe.name):
                    say(f"note: {line}")
    outcome.seconds = time.monotonic() - began
    return outcome


def follow_source(instance: dg.DagsterInstance, workspace: Workspace) -> list[str]:
    """Makes the recipe's shards those of its source, however many that takes out; returns those left out."""
    recipe, store = workspace.recipe, workspace.store
    claim_partitions(instance, recipe)
    name = shards_definition(recipe.name).name
    assert name is not None
    wanted = list(workspace.upstream().shards(recipe))
    known = instance.get_dynamic_partitions(name)
    left_out = sorted({*known, *store.read_refs(recipe.name, "preference_shard")} - set(wanted))
    drop(instance, store, recipe.name, left_out)
    instance.add_dynamic_partitions(name, [shard for shard in wanted if shard not in set(known)])
    return left_out


def split_by_hand(workspace: Workspace, left_out: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those of the shards that the source has no more, and those that somebody withdrew."""
    withdrawn = withdrawn_shards(workspace.upstream(), workspace.recipe)
    shards = list(left_out)
    return [one for one in shards if one not in withdrawn], [one for one in shards if one in withdrawn]


# `align backfill`: makes any set of shards again where they are behind, now and in this process.

STAGES = ("preference_shard", "reference_logprobs")


@dataclass(frozen=True)
class Chosen:
    """Which shards a person asked for: by name, by a stretch of the source's order (ends included), or all."""

    shards: tuple[str, ...] | None = None
    first: str | None = None
    last: str | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self.shards is None and self.first is None and self.last is None

    def of(self, order: list[str]) -> list[str]:
        """The chosen ones in the source's order. Raises `BadInput` naming a shard that the source does not have."""
        if self.shards is not None and (self.first is not None or self.last is not None):
            raise BadInput("give either names, or the ends of a stretch", field="--shards")
        for field_name, names in (("--shards", self.shards or ()), ("--from", (self.first,)), ("--to", (self.last,))):
            for name in names:
                if name is not None and name not in order:
                    raise BadInput(f"the source has no shard '{name}'", field=field_name)
        if self.shards is not None:
            return [name for name in order if name in self.shards]
        start = order.index(self.first) if self.first is not None else 0
        end = order.index(self.last) if self.last is not None else len(order) - 1
        if start > end:
            raise BadInput(f"'{self.first}' comes after '{self.last}' in the source", field="--from")
        return order[start : end + 1]


@dataclass
class Backfilled:
    """What a backfill did. `made` maps each stage to the shards that are current now and were not before. `withdrawn`
    are the shards that it left out, and `by_hand` those of them that somebody withdrew."""

    recipe: str
    shards: list[str]
    dagster_runs: list[str] = field(default_factory=list)
    made: dict[str, list[str]] = field(default_factory=dict)
    current: dict[str, list[str]] = field(default_factory=dict)
    behind: dict[str, list[str]] = field(default_factory=dict)
    withdrawn: list[str] = field(default_factory=list)
    by_hand: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run_backfill(path: Path, chosen: Chosen, stage: str | None, say: Callable[[str], None]) -> Backfilled:
    """Makes the chosen shards of `stage` (of both, if None) that are behind.

    A shard that fails or cannot be read is named at the end, and the others stand. All of the source at once is
    followed as `align run` follows it: what the source has no more is left out. Raises `BadInput` for what can be seen
    before it starts.
    """
    began = time.monotonic()
    if stage is not None and stage not in STAGES:
        raise BadInput(f"'{stage}' is not one of {', '.join(STAGES)}", field="--stage")
    workspace = use_recipe(path)
    recipe = workspace.recipe
    source = workspace.upstream().shards(recipe)
    result = Backfilled(recipe.name, chosen.of(list(source)))
    refused: dict[str, str] = {}
    planned = plan(workspace, only=result.shards, refused=refused)
    there = {node.name for node in workspace.nodes}
    if stage is not None and stage not in there:
        raise BadInput(f"{recipe.training.called} has no {stage}", file=str(path), field="--stage")
    stages = tuple(name for name in STAGES if name in there) if stage is None else (stage,)
    if STAGES[1] in stages and any(one.node.name == "sft_checkpoint" and one.commit is None for one in planned):
        raise BadInput("has no SFT checkpoint to score with; `align run` makes it", file=str(path))
    claim(workspace.store, recipe)
    before = _current(planned, result.shards, stages)
    with dagster_instance() as instance:
        for run_id in end_dead_runs(instance):
            say(f"ended run {run_id[:8]}: its process is gone")
        apply_pools(instance, workspace.pools)
        if chosen.everything:
            result.withdrawn = follow_source(instance, workspace)
            _, result.by_hand = split_by_hand(workspace, result.withdrawn)
        else:
            _add(instance, recipe, result.shards)
        for phase in workspace.phases:
            if phase.partitioned and phase.nodes[0].name in stages:
                _run_phase(instance, workspace, phase, result, refused, say)
    after = _current(plan(workspace, only=result.shards, refused=refused), result.shards, stages)
    result.failures += [f"{shard}: {why}" for shard, why in refused.items()]
    for name in stages:
        result.current[name] = [shard for shard in result.shards if shard in before[name]]
        result.made[name] = [shard for shard in result.shards if shard in after[name] - before[name]]
        result.behind[name] = [shard for shard in result.shards if shard not in after[name]]
    result.seconds = round(time.monotonic() - began, 1)
    return result


def _run_phase(
    instance: dg.DagsterInstance,
    workspace: Workspace,
    phase: Phase,
    result: Backfilled,
    refused: dict[str, str],
    say: Callable[[str], None],
) -> None:
    for tags, nodes in launches(instance, workspace, phase, set(result.shards), refused):
        try:
            result.dagster_runs.append(launch(instance, workspace.recipe, phase, nodes, tags, say))
        except RunFailed as failure:
            result.dagster_runs.append(failure.run_id)
            result.failures.append(str(failure))
        except BadInput as error:
            result.failures.append(str(error))


def _current(planned: list[Planned], shards: list[str], stages: tuple[str, ...]) -> dict[str, set[str]]:
    """Stage → those of the shards that are made and reported."""
    current: dict[str, set[str]] = {name: set() for name in stages}
    for one in planned:
        if one.node.name in current and one.shard in shards and one.state == "current":
            current[one.node.name].add(str(one.shard))
    return current


def _add(instance: dg.DagsterInstance, recipe: Recipe, shards: list[str]) -> None:
    claim_partitions(instance, recipe)
    name = shards_definition(recipe.name).name
    assert name is not None
    known = set(instance.get_dynamic_partitions(name))
    instance.add_dynamic_partitions(name, [shard for shard in shards if shard not in known])
