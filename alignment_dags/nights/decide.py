"""What a night does next: a pure function of its record, of what is behind, of the runs there are, and of the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from alignment.errors import counted, first_few
from alignment.recipe import Recipe
from alignment_dags.nights.night import Night, Outcome
from alignment_dags.nights.state import State
from alignment_dags.run.upgrade import ACCEPT, told
from alignment_dags.run.workspace import MANIFEST

GRACE = timedelta(minutes=2)
"""How long a night leaves shards that are behind to the sensors that follow a source, before it makes them itself."""
REFUSED = ("fail", "inconclusive")
SHARD_PHASES: dict[str, str] = {"shards": "rows", "reference": "reference log-probs"}


@dataclass(frozen=True)
class RunSeen:
    """A Dagster run or backfill of the recipe: one of this night's (`mine`), or another's that is going on.

    `asked_at` is when it was queued, of a second try when the first was. `verdict` is the gate's, where a run ended
    because it said no; `told` is why a failed run failed.
    """

    id: str
    phases: frozenset[str]
    state: Literal["going", "succeeded", "failed"]
    mine: bool = False
    asked_at: datetime | None = None
    ended_at: datetime | None = None
    canceled: bool = False
    verdict: str | None = None
    told: str = ""


@dataclass(frozen=True)
class Launch:
    """Start the phase's runs: over `nodes`, and for a phase of shards over these `shards`."""

    phase: str
    nodes: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wait:
    """Look again at the next tick. `idle`: something is behind that nobody is making."""

    reason: str
    idle: bool = False


@dataclass(frozen=True)
class Close:
    """The night is over."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class End:
    """Cancel the night's runs that are going on, and look again: it has passed a limit."""

    reason: str


NextStep = Launch | Wait | Close | End


@dataclass(frozen=True)
class Limits:
    """What the recipe's schedule lets a night take; None for no limit."""

    max_hours: float | None = None
    max_cost: float | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Limits:
        """Those of the recipe's schedule; none without one."""
        schedule = recipe.schedule
        return cls() if schedule is None else cls(schedule.max_hours, schedule.max_cost)

    def passed(self, runs: Sequence[RunSeen], now: datetime, cost: float | None) -> str | None:
        """Which limit a night has passed and by what; None while it is within both.

        Hours count from the first run that the night asked for, so the time in a queue and a second try count too.
        """
        asked = [run.asked_at for run in runs if run.mine and run.asked_at is not None]
        if self.max_hours is not None and asked and now - min(asked) >= timedelta(hours=self.max_hours):
            return f"longer than schedule.max_hours, {self.max_hours:g} hours since its first run was asked for"
        if self.max_cost is not None and cost is not None and cost >= self.max_cost:
            return f"schedule.max_cost is reached: {cost:.2f} of {self.max_cost:.2f} spent"
        return None


NO_LIMITS = Limits()


def never_sleeps() -> None:
    """Every night trains on what is new."""
    return None


def decide_night(
    night: Night,
    state_now: Callable[[], State],
    runs: Sequence[RunSeen],
    now: datetime,
    idle_since: datetime | None,
    limits: Limits = NO_LIMITS,
    cost: float | None = None,
    asleep: Callable[[], str | None] = never_sleeps,
) -> NextStep:
    """The next step. A night launches each phase at most once, so that what fails does not fail all night.

    `state_now` is asked only when the runs alone do not decide. `idle_since` is since when something was behind that
    nobody was making, None if that was not so at the last look. `cost` is what the night's runs have cost so far. A
    night that has passed a limit has its runs ended, and closes when they have ended; what is done by then counts.
    `asleep` says why new rows wait (None: they do not); it is asked where other rows are all that is to be trained on,
    before these are measured and after.
    """
    trained = _mine(runs, "train")
    done = trained is not None and trained.state != "going" and not trained.canceled
    if not done and (passed := limits.passed(runs, now, cost)) is not None:
        return End(passed) if any(run.mine and run.state == "going" for run in runs) else Close("failed", passed)
    if trained is not None:
        return _after_training(trained, night.woke)
    base, pinned = _mine(runs, "base"), _mine(runs, "manifest")
    for what, run in (("the base model and SFT", base), ("the manifest", pinned)):
        if run is not None and run.state == "going":
            return Wait(f"{what}: in progress (run {run.id[:8]})")
        if run is not None and run.state == "failed":
            return Close("failed", f"{what}: {run.told}")
    state = state_now()
    if state.upgrade:
        return Wait(f"waits for {ACCEPT}: this version makes anew {told(state.upgrade)}")
    started = base.ended_at if base is not None and base.ended_at else night.recorded_at
    if state.accepted_at is not None:  # shards had no time before
        started = max(started, state.accepted_at)
    late = now >= started + timedelta(minutes=night.deadline_minutes)
    if pinned is None:
        if state.base:
            return _base(state, base, runs, late)
        if not late and (step := _shards(state, runs, now, idle_since)) is not None:
            return step
        if state.manifest_behind:
            rows_alone = state.manifest is not None and is_settled(state)
            why = asleep() if rows_alone else None
            if (why is not None or (rows_alone and state.bounded)) and (step := _measured(state, runs)) is not None:
                return step
            return Launch("manifest", nodes=state.pinning) if why is None else Close("slept", why)
    return _training(state, runs, late)


def _base(state: State, made: RunSeen | None, runs: Sequence[RunSeen], late: bool) -> NextStep:
    """A new base or SFT comes first, whatever the deadline: no reference log-prob holds without it. It is not made
    for a source of which nothing can be used."""
    names = ", ".join(state.base)
    if (other := _going(runs, "base")) is not None:
        return Wait(f"{names}: run {other.id[:8]} is making it")
    if state.total and len(state.unreadable) == state.total:
        told = first_few(sorted(state.unreadable.values()), "; ")
        return Close("failed", told) if late else Wait(told)
    if made is not None:
        return Close("failed", f"{names}: made this night, and out of date again")
    return Launch("base", nodes=state.base)


def _shards(state: State, runs: Sequence[RunSeen], now: datetime, idle_since: datetime | None) -> NextStep | None:
    """What to do about shards that are not ready, before the deadline; None to go on without them."""
    if state.unsettled:
        reasons = ", ".join(sorted(set(state.unsettled.values())))
        return Wait(f"{first_few(list(state.unsettled))}: {reasons}")
    for phase, behind in (("shards", state.shards), ("reference", state.reference)):
        what = f"{SHARD_PHASES[phase]} of {first_few(behind)}"
        if behind and (going := _going(runs, phase)) is not None:
            return Wait(f"{what}: run {going.id[:8]} is making them")
        if not behind or _mine(runs, phase) is not None:
            continue
        if idle_since is None or now - idle_since < GRACE:
            return Wait(f"{what}: behind, and left to the sensors for {GRACE.seconds // 60} minutes", idle=True)
        return Launch(phase, shards=behind)
    return None


def _training(state: State, runs: Sequence[RunSeen], late: bool) -> NextStep:
    if state.base:
        return Close("failed", f"{', '.join(state.base)}: changed after the manifest was pinned")
    if is_settled(state):
        return Close("skipped", _unchanged(state))
    if (other := _going(runs, "train")) is not None and not late:
        return Wait(f"run {other.id[:8]} is training this recipe")
    return Launch("train", nodes=state.train)


def _measured(state: State, runs: Sequence[RunSeen]) -> NextStep | None:
    """Rows that wait, or that the gate bounds, are measured first, unless more than that is to be made for it: what is
    found may wake the night, or keep it from training. None where that is done, or failed: which is no reason to
    train."""
    measured = _mine(runs, "measure")
    if measured is not None and measured.state == "going":
        return Wait(f"new rows are being measured (run {measured.id[:8]})")
    if measured is None and state.incoming and state.pinning == (MANIFEST,):
        return Launch("measure", nodes=state.incoming)
    return None


def is_settled(state: State) -> bool:
    """Whether nothing is to be made of the manifest that is pinned."""
    return not state.train or (state.train == ("registered_model",) and state.verdict in REFUSED)


def _unchanged(state: State) -> str:
    """Why there is nothing to do, with what was looked at."""
    looked = f"{counted(state.total, 'shard')}, the checkpoint that training starts from, the recipe's settings"
    manifest = f"manifest {state.manifest[:12]} " if state.manifest else "the manifest "
    told = f"nothing changed: {manifest}is the one tried last (looked at {looked})"
    if state.verdict in REFUSED:
        told += f"; the gate said {state.verdict} to its policy"
    if state.behind:
        told += f"; not ready: {first_few(state.behind)}"
    return told


def _after_training(run: RunSeen, woke: str) -> NextStep:
    if run.state == "going":
        return Wait(f"training and evaluation are in progress (run {run.id[:8]})")
    why = f"; why tonight: {woke}" if woke else ""
    if run.state == "succeeded":
        return Close("passed", f"trained and evaluated{why}")
    if run.verdict is not None:
        return Close("gated", f"the gate says {run.verdict}: {run.told}{why}")
    return Close("failed", run.told)


def _mine(runs: Sequence[RunSeen], phase: str) -> RunSeen | None:
    """This night's run of a phase: one that is going, else one that failed, else one that succeeded."""
    order = ("going", "failed", "succeeded")
    found = sorted((run for run in runs if run.mine and phase in run.phases), key=lambda run: order.index(run.state))
    return found[0] if found else None


def _going(runs: Sequence[RunSeen], phase: str) -> RunSeen | None:
    return next((run for run in runs if phase in run.phases and run.state == "going"), None)
