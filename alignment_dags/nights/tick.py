"""One look at a recipe's nights: takes the one whose turn it is, and does its next step."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import dagster as dg
from dagster._core.storage.tags import MAX_RUNTIME_SECONDS_TAG

from alignment.errors import BadInput
from alignment.recipe import Recipe
from alignment.store import CorruptArtifact, MissingArtifact
from alignment_dags.nights.cost import cost_so_far, note_costs
from alignment_dags.nights.decide import Close, End, Launch, Limits, NextStep, Wait, decide_night
from alignment_dags.nights.finish import Ending, close_night, note_elsewhere, sentence, watch_alias, watch_judge
from alignment_dags.nights.night import Night, Outcome
from alignment_dags.nights.records import SET_ASIDE, NightBook
from alignment_dags.nights.runs import runs_seen
from alignment_dags.nights.state import State, state_of
from alignment_dags.nights.worth import sleeps_or_wakes, worth_of
from alignment_dags.run.launch import RANGE_END, RANGE_START, stretches
from alignment_dags.run.shards import claim
from alignment_dags.run.upgrade import ACCEPT, Upgrades, told
from alignment_dags.run.workspace import Workspace, job_name
from assets.building.factory import asset_key, shards_definition, shards_per_run
from assets.building.upstream import NotBuilt
from resources.alerts import Alert, send
from resources.mlflow import Tracking

UNREADABLE = (BadInput, NotBuilt, MissingArtifact, CorruptArtifact)
ENDING = {"base", "manifest", "train"}  # phases whose failure ends the night, and is its reason


@dataclass(frozen=True)
class Ticked:
    """What a tick asks of Dagster; `idle` when something is behind that nobody is making."""

    reason: str
    requests: tuple[dg.RunRequest, ...] = ()
    new_shards: tuple[str, ...] = ()
    idle: bool = False


def tick(
    instance: dg.DagsterInstance,
    workspace: Workspace,
    now: datetime,
    idle_since: datetime | None,
) -> Ticked:
    """The next step of the night whose turn it is."""
    recipe = workspace.recipe
    book = NightBook(workspace.store, recipe.name)
    night = whose_turn(book, recipe, now)
    for path, why in list(book.unreadable.items()):
        text = f"{path}: {why}; set aside as {SET_ASIDE}, and the other nights go on"
        send(recipe.alerts, Alert(recipe.name, "night_unreadable", text))
        book.set_aside(path)
    if night is None:
        return Ticked("no night is waiting")
    seen = runs_seen(instance, workspace, night)
    limits = Limits.of(recipe)
    cost = cost_so_far(instance, workspace, night, now) if limits.max_cost is not None else None
    night = night.model_copy(
        update={
            "runs": [run.id for run in seen if run.mine],
            "troubles": [run.told for run in seen if run.mine and run.told and not run.phases & ENDING],
        }
    )
    states: list[State] = []

    def state_now() -> State:
        claim(workspace.store, recipe)
        states.append(state_of(workspace))
        return states[-1]

    def asleep() -> str | None:
        nonlocal night
        schedule = recipe.schedule
        if schedule is None or schedule.worth is None or night is None or (worth := worth_of(workspace)) is None:
            return None
        sleeps, wakes = sleeps_or_wakes(worth, schedule, now)
        night = night.model_copy(update={"worth": worth, "woke": wakes or ""})
        return sleeps

    try:
        step = decide_night(night, state_now, seen, now, idle_since, limits, cost, asleep)
    except UNREADABLE as error:
        step = unreadable(night, error, now)
    if states:
        watch_upgrade(book, recipe, states[-1], now)
    if isinstance(step, Close):
        state = states[-1] if states else _state_or_none(workspace)
        closed = watch_judge(book, recipe, close_night(book, recipe, Ending(night, step, now, state)), now)
        # afterwards, as a large store or MLflow may keep a tick waiting until Dagster ends it
        closed = note_elsewhere(book, note_costs(instance, workspace, book, closed))
        watch_alias(book, recipe, closed, Tracking(attempts=1))
        return Ticked(sentence(closed))
    if isinstance(step, End):
        for run in seen:
            if run.mine and run.state == "going":
                instance.run_coordinator.cancel_run(run.id)
        _note(book, night, f"ending its runs: {step.reason}", "running")
        return Ticked(f"{night.told}: ending its runs: {step.reason}")
    if isinstance(step, Wait):
        _note(book, night, step.reason, night.outcome)
        return Ticked(f"{night.told}: {step.reason}", idle=step.idle)
    requests, new_shards = requested(instance, workspace, night, step)
    _note(book, night, f"launched {step.phase}", "running")
    return Ticked(f"{night.told}: launched {step.phase}", requests, new_shards)


def whose_turn(book: NightBook, recipe: Recipe, now: datetime) -> Night | None:
    """The night that has begun, else the latest; those before the latest are missed, closed and told of. One that
    waited for the acceptance of an upgrade is closed quietly, as people were told once of what it waited for."""
    waiting = book.open_nights()
    begun = [night for night in waiting if night.outcome == "running"]
    if begun:
        return begun[-1]
    quiet = len(waiting) > 1 and Upgrades(book.store, recipe.name).waits
    for missed in waiting[1:]:
        why = f"; it waited for {ACCEPT}" if quiet else ""
        closed = missed.closed("missed", f"the {waiting[0].told} came before it began{why}", now)
        book.write(closed)
        if not quiet:
            send(recipe.alerts, Alert(recipe.name, "night_missed", sentence(closed)))
    return waiting[0] if waiting else None


def watch_upgrade(book: NightBook, recipe: Recipe, state: State, now: datetime) -> None:
    """Alerts of what this version makes anew once, however many nights wait for its acceptance."""
    upgrades = Upgrades(book.store, recipe.name)
    if upgrades.is_news(state.upgrade):
        text = (
            f"this version makes anew {told(state.upgrade)}. `align upgrade` says what it takes; nights and the source "
            f"sensor wait for {ACCEPT} (docs/upgrading.md)"
        )
        send(recipe.alerts, Alert(recipe.name, "upgrade_waits", text))
    upgrades.note_alert(state.upgrade, now)


def unreadable(night: Night, error: Exception, now: datetime) -> NextStep:
    """A source or store that cannot be read may be readable again before the deadline."""
    if now >= night.recorded_at + timedelta(minutes=night.deadline_minutes):
        return Close("failed", str(error))
    return Wait(str(error))


def requested(
    instance: dg.DagsterInstance, workspace: Workspace, night: Night, launch: Launch
) -> tuple[tuple[dg.RunRequest, ...], tuple[str, ...]]:
    """The runs of a launch, and the shards among them that Dagster has no partition for yet.

    Their run keys repeat if the tick does, and Dagster launches a run key once.
    """
    recipe = workspace.recipe
    name = job_name(recipe.name, "train" if launch.phase in ("manifest", "measure") else launch.phase)
    tags = night.tags | _longest(recipe)
    if not launch.shards:
        request = dg.RunRequest(
            run_key=f"{night.id}:{launch.phase}",
            job_name=name,
            asset_selection=[asset_key(recipe.name, node) for node in launch.nodes],
            tags=tags,
        )
        return (request,), ()
    node = next(phase for phase in workspace.phases if phase.name == launch.phase).nodes[0]
    partitions = shards_definition(recipe.name).name
    assert partitions is not None
    known = instance.get_dynamic_partitions(partitions)
    new = [shard for shard in launch.shards if shard not in set(known)]
    most = shards_per_run(node, workspace.pools) if node.pool else len(launch.shards)
    requests = tuple(
        dg.RunRequest(
            run_key=f"{night.id}:{launch.phase}:{first}",
            job_name=name,
            asset_selection=[asset_key(recipe.name, node.name)],
            tags={**tags, RANGE_START: first, RANGE_END: last},
        )
        for first, last in stretches([*known, *new], set(launch.shards), most)
    )
    return requests, tuple(new)


def _longest(recipe: Recipe) -> dict[str, str]:
    """The tag by which Dagster's run monitoring ends a run that takes too long, should no tick do so."""
    return {} if recipe.schedule is None else {MAX_RUNTIME_SECONDS_TAG: str(recipe.schedule.max_hours * 3600)}


def _state_or_none(workspace: Workspace) -> State | None:
    try:
        return state_of(workspace)
    except UNREADABLE:
        return None


def _note(book: NightBook, night: Night, reason: str, outcome: Outcome) -> None:
    """Keeps in the record what the night is doing."""
    book.write(night.model_copy(update={"reason": reason, "outcome": outcome}))
