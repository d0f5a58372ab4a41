"""Dagster runs for one phase: which are needed, and executing one to its end."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.definitions.repository_definition.valid_definitions import SINGLETON_REPOSITORY_NAME
from dagster._core.execution.api import execute_run
from dagster._core.executor.child_process_executor import ChildProcessCrashException
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.tags import MAX_RETRIES_TAG
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._utils.error import SerializableErrorInfo  # type: ignore[attr-defined]
from dagster._utils.interrupts import capture_interrupts
from sqlalchemy.exc import SQLAlchemyError

from alignment.address import shown
from alignment.errors import BadInput, one_line
from alignment.progress import MOVING, Pace, duration, place_of
from alignment.recipe import Recipe
from alignment_dags.run.plan import Planned, plan
from alignment_dags.run.workers import process_tags
from alignment_dags.run.workspace import Phase, Workspace
from assets.building.factory import BAD_INPUT, asset_key, shards_definition, shards_per_run
from assets.building.node import not_reported_elsewhere

# Progress of a Dagster run on the terminal, read from its event log while it runs.

TAG = ".dagster/align_launch"  # Dagster's pages hide tags of this prefix
PERIOD = 0.5  # seconds between two looks at the event log
GOES_ON = "resuming from"
NOTHING = "nothing to make: "
NOT_TOLD = ("Dependencies for step", "[pipes] ", "logits: ", "prompts are ", "made (key ")
"""How messages begin that are for the log of a Dagster run, and say nothing to who waits for it."""
PAUSE = 3.0  # seconds between two lines that a step's stage logs and that say nothing of how far it is


UNFINISHED = "finished without success or failure event"  # Dagster's words for a step that was stopped before it began


class Progress:
    """Tells `say` when steps start and end, and what stages log; finds its run by the tag in `tags`.

    A line that says how far a stage is gets the time that is left, and moves (`alignment.progress`). `places` maps
    the steps that have not ended to the last such line.
    """

    def __init__(self, instance: dg.DagsterInstance, phase: str, say: Callable[[str], None]) -> None:
        self.instance = instance
        self.phase = phase
        self.say = say
        self.tags = {TAG: uuid.uuid4().hex}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._run_id: str | None = None
        self._cursor: str | None = None
        self._began: dict[str, float] = {}
        self._spoke: dict[str, float] = {}
        self._paces: dict[str, Pace] = {}
        self.places: dict[str, str] = {}
        self._reasons: set[str] = set()

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._try_to_look()

    def _follow(self) -> None:
        while not self._done.wait(PERIOD):
            self._try_to_look()

    def _try_to_look(self) -> None:
        """A storage that does not answer is tried again; whoever executes the run meets the same, and tells it."""
        with contextlib.suppress(SQLAlchemyError):
            self._look()

    def _look(self) -> None:
        if self._run_id is None:
            runs = self.instance.get_runs(dg.RunsFilter(tags=self.tags), limit=1)
            if not runs:
                return
            self._run_id = runs[0].run_id
        seen = self.instance.get_records_for_run(self._run_id, cursor=self._cursor)
        self._cursor = seen.cursor
        for record in seen.records:
            self._tell(record.event_log_entry)

    def _tell_message(self, entry: dg.EventLogEntry, step: str) -> None:
        """Warnings always, and where work goes on; how far a stage is, as a line that moves; of the others as many as a
        person can read, and why there is nothing to make once."""
        message, warning = entry.user_message, int(entry.level) >= logging.WARNING
        if not message or message.startswith(NOT_TOLD) or UNFINISHED in message or message in self._reasons:
            return
        if message.startswith(NOTHING):
            self._reasons.add(message)
        place = None if warning else place_of(message)
        if place is not None:
            left = self._paces.setdefault(step, Pace()).left(*place, entry.timestamp)
            self.places[step] = "step {} of {}".format(*place) if "step" in message else "{} of {}".format(*place)
            soon = "" if left is None else f" ({duration(left)} left)"  # first, as a narrow terminal cuts the line
            self.say(f"{MOVING}    {step}{soon}: {message}")
        elif warning or message.startswith(GOES_ON) or entry.timestamp - self._spoke.get(step, 0.0) >= PAUSE:
            self._spoke[step] = entry.timestamp
            self.say(f"    {step}: {plain_alert(message)}".replace("\n", "\n    "))

    def _tell(self, entry: dg.EventLogEntry) -> None:
        event = entry.dagster_event
        step = (entry.step_key or "").split("__", 1)[-1].replace("__", "/")
        if event is None:
            self._tell_message(entry, step)
            return
        if event.event_type == dg.DagsterEventType.STEP_START:
            self._began[step] = entry.timestamp
            self.say(f"  {self.phase} · {step} …")
        elif event.event_type == dg.DagsterEventType.STEP_SUCCESS:
            self.places.pop(step, None)
            self.say(f"  {self.phase} · {step} done in {entry.timestamp - self._began.get(step, time.time()):.1f} s")
        elif event.event_type == dg.DagsterEventType.STEP_FAILURE and not is_interruption(entry):
            self.say(f"  {self.phase} · {step} FAILED")


def plain_alert(message: str) -> str:
    """A message of a step; an alert among them without the recipe's name and the name to filter by, which the reader of
    one run's lines knows or does not need."""
    found = ALERT.match(message)
    return message if found is None else f"{found[1]}{message[found.end() :]}"


ALERT = re.compile(r"[a-z][a-z0-9_]*: (.*) \(alert [a-z_]+\)(?=\n|$)")
"""The first line of `Alert.line`."""
LOCATION = ManagedGrpcPythonEnvCodeLocationOrigin(
    LoadableTargetOrigin(module_name="alignment_dags.definitions"), location_name="alignment_dags"
)
"""The code location of workspace.yaml."""
NO_RETRY = {MAX_RETRIES_TAG: "0"}
"""A run that ends with its command is not started again by a daemon: the person runs the command again."""
Place = tuple[str, str | None]
"""A node's name and its shard."""
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


class RunFailed(RuntimeError):
    """A Dagster run failed; the message has a line for every step that did."""

    def __init__(self, run_id: str, message: str) -> None:
        super().__init__(shown(message))
        self.run_id = run_id


class Stopped(Exception):
    """A person interrupted a Dagster run; the message says how far it was. What it had made stands."""

    def __init__(self, run_id: str, places: Mapping[str, str]) -> None:
        where = " and ".join(f"{place} of {step}" for step, place in places.items())
        super().__init__(f"stopped{' at ' if where else ''}{where}; run it again to go on")
        self.run_id = run_id


INTERRUPTIONS = ("DagsterExecutionInterruptedError", "KeyboardInterrupt")
"""Errors of a step that a person's Ctrl-C ended."""


def is_interruption(entry: dg.EventLogEntry) -> bool:
    """Whether a step failed because a person interrupted it."""
    event = entry.dagster_event
    error = None if event is None or not event.is_step_failure else event.step_failure_data.error
    while error is not None:
        if error.cls_name in INTERRUPTIONS:
            return True
        error = error.cause
    return False


def launches(
    instance: dg.DagsterInstance,
    workspace: Workspace,
    phase: Phase,
    only: Set[str] | None = None,
    refused: dict[str, str] | None = None,
) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Tags and node names of each Dagster run the phase needs now: one, or one a stretch of shards (of `only` these).

    A shard that waits for something above it to be made is not in any; nor is one that `plan` has `refused`. What is
    made and reported, and this Dagster knows nothing of, is reported again: its history may be new, or wiped.
    """
    planned = plan(workspace, only=only, refused=refused)
    names = {node.name for node in phase.nodes}
    ours = [one for one in planned if one.node.name in names]
    unknown = _unknown_to(instance, workspace.recipe, ours)
    behind = [one for one in ours if one.state != "current" or (one.node.name, one.shard) in unknown]
    if not behind:
        return
    if not phase.partitioned:
        yield {}, list(dict.fromkeys(one.node.name for one in behind))
        return
    name = shards_definition(workspace.recipe.name).name
    assert name is not None
    node = phase.nodes[0]
    most = shards_per_run(node, workspace.pools) if node.pool else len(behind)
    wanted = {one.shard for one in behind if one.state != "waiting"}
    for first, last in stretches(instance.get_dynamic_partitions(name), wanted, most):
        yield {RANGE_START: first, RANGE_END: last}, [node.name]


def _unknown_to(instance: dg.DagsterInstance, recipe: Recipe, planned: Sequence[Planned]) -> set[Place]:
    """Artifacts that are reported as their own node's, and that a Dagster has no materialization of."""
    made = [one for one in planned if one.commit is not None and one.node.reported_elsewhere is not_reported_elsewhere]
    known: set[Place] = set()
    for node in {one.node.name: one.node for one in made}.values():
        key = asset_key(recipe.name, node.name)
        if node.partitioned:
            known |= {(node.name, shard) for shard in instance.get_materialized_partitions(key)}
        elif instance.get_latest_materialization_event(key) is not None:
            known.add((node.name, None))
    return {(one.node.name, one.shard) for one in made} - known


def stretches(order: Sequence[str], wanted: Set[str | None], most: int) -> Iterator[tuple[str, str]]:
    """First and last shard of every unbroken stretch of wanted shards in Dagster's order, `most` at a time."""
    stretch: list[str] = []
    for shard in [*order, None]:
        if stretch and (shard not in wanted or len(stretch) == most):
            yield stretch[0], stretch[-1]
            stretch = []
        if shard is not None and shard in wanted:
            stretch.append(shard)


def launch(
    instance: dg.DagsterInstance,
    recipe: Recipe,
    phase: Phase,
    chosen: list[str],
    tags: dict[str, str],
    say: Callable[[str], None],
) -> str:
    """Executes one Dagster run over the chosen nodes and returns its id.

    Raises `RunFailed` or `BadInput`, and `Stopped` where a person interrupts it.
    """
    named = {"recipe_name": recipe.name, "phase_name": phase.name}
    job = dg.build_reconstructable_job("alignment_dags.jobs", "load_job", reconstructable_kwargs=named)
    job.get_definition()  # imports much, and is kept: an interruption is not held up while it does
    # Dagster's handlers from before there is a run until it has ended: no interruption leaves one half recorded
    with interruptions() as came, capture_interrupts(), Progress(instance, phase.name, say) as progress:
        selection = [asset_key(recipe.name, name) for name in chosen]
        result = execute(instance, job, selection, {**process_tags(), **progress.tags, **NO_RETRY, **tags})
    if not result.success:  # a step that was ended before it began keeps its slot
        instance.event_log_storage.free_concurrency_slots_for_run(result.run_id)
    failures = list(instance.all_logs(result.run_id, of_type=dg.DagsterEventType.STEP_FAILURE))
    if came() or any(map(is_interruption, failures)):  # however the run failed, or though it was just done
        raise Stopped(result.run_id, progress.places)
    if result.success:
        return result.run_id
    raise_failure(instance, result.run_id)
    raise AssertionError("unreachable")


@contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Notices Ctrl-C and SIGTERM whoever handles them: Dagster's handlers are many, and forget. Gives what says
    whether one came; nothing does outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for end in (ours, theirs):
            end.setblocking(False)
        numbers: set[int] = set()

        def came() -> bool:
            with contextlib.suppress(OSError):  # none came, or closed: what came is kept
                numbers.update(ours.recv(4096))
            return not numbers.isdisjoint((signal.SIGINT, signal.SIGTERM))

        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield came
        finally:
            signal.set_wakeup_fd(before)
            came()


def execute(
    instance: dg.DagsterInstance, job: ReconstructableJob, selection: Sequence[dg.AssetKey], tags: Mapping[str, str]
) -> dg.JobExecutionResult:
    """Executes assets of a job as one Dagster run that is the project's code location's own.

    `dg.execute_job` makes a run without a location, which Dagster's timeline leaves out and its pages cannot start
    again.
    """
    definition = job.get_definition()
    run = instance.create_run_for_job(
        job_def=definition,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        tags={**definition.run_tags, **tags},
        asset_selection=frozenset(selection),
        remote_job_origin=RemoteJobOrigin(
            repository_origin=RemoteRepositoryOrigin(LOCATION, SINGLETON_REPOSITORY_NAME), job_name=definition.name
        ),
        job_code_origin=job.get_python_origin(),
    )
    return execute_run(job, run, instance)


REASON = 300
"""Characters of a reason that is Dagster's own."""


@dataclass(frozen=True)
class StepFailure:
    """A step that failed, with the reason; `mendable` says that a person has to mend its input."""

    step: str
    reason: str
    mendable: bool


def why(error: SerializableErrorInfo) -> str:
    """What a person reads of a step's error that is none of ours, in one line."""
    if error.cls_name == ChildProcessCrashException.__name__:  # without a word of its own, or of Dagster's
        return "its process was killed, or crashed (out of memory, perhaps); run it again to go on"
    return one_line((error.cause or error).message)


def step_failures(instance: dg.DagsterInstance, run_id: str) -> list[StepFailure]:
    """The failed steps of a run, in order."""
    failures = []
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        event = entry.dagster_event
        assert event is not None
        data = event.step_failure_data
        failure = data.user_failure_data
        told = failure.description if failure else None
        if told is None and data.error is not None:
            told = why(data.error)
        bad = failure.metadata.get(BAD_INPUT) if failure else None
        reason = str(told) if bad is None else str(bad.value)
        failures.append(StepFailure(str(event.step_key), reason, bad is not None))
    return failures


def raise_failure(instance: dg.DagsterInstance, run_id: str) -> NoReturn:
    """Raises `BadInput` if every failed step says a person has to mend its input, else `RunFailed`."""
    failures = step_failures(instance, run_id)
    if failures and all(failure.mendable for failure in failures):
        raise BadInput("; ".join(dict.fromkeys(failure.reason for failure in failures)))
    lines = "\n".join(f"{failure.step}: {failure.reason}" for failure in failures)
    raise RunFailed(run_id, lines or f"Dagster run {run_id} failed before any step{_why_before(instance, run_id)}")


def _why_before(instance: dg.DagsterInstance, run_id: str) -> str:
    """The reason of a run that failed and no step of it did: the first that Dagster has recorded, in a line."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_FAILURE):
        event = entry.dagster_event
        if event is not None and (error := event.job_failure_data.error) is not None:
            return f": {first_reason(error)}"
    return ""


def first_reason(error: SerializableErrorInfo) -> str:
    """One line of a run's error: where processes of steps failed, what the first of them said."""
    text = str(error.message).strip()
    said = re.search(r"^In process \d+: (.+)", text, re.MULTILINE)
    line = said[1] if said else text.split("\n")[0]
    return re.sub(r"^(?:\w+\.)+\w+: ", "", line)[:REASON]
