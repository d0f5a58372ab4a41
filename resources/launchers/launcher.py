"""The launcher interface: run a stage whose artifact is missing, and return its commit.

`StepLauncher` runs it in the step's process. Every other launcher is a `ProgramLauncher`: it starts `python -m
alignment.stages` somewhere, whose request and bad input travel through the store, and reads the commit from the store.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import dagster as dg
from dagster._utils.interrupts import capture_interrupts

from alignment.address import handed_on, shown
from alignment.devices import take_for_this_process
from alignment.digest import json_digest
from alignment.errors import BadInput, chain
from alignment.stages.__main__ import BAD_INPUT_FILE
from alignment.stages.execute import DAGSTER_RUN, JOB, KEY_IS_HELD, RECIPE_NAME, execute
from alignment.stages.stage import Request, Stage
from alignment.stages.usage import POOL
from alignment.store import Commit, MissingArtifact, Store
from resources.pools import Pool

RETRIES = 3
"""Times that a step goes on after a node was lost or a cluster did not answer."""
PAUSE = 10
"""Seconds before each of them."""
NOT_INSTALLED = re.compile(
    r"No module named '?(alignment|assets|eval|resources)\b|ErrImage\w*|ImagePull\w*|InvalidImageName"
)
LOST = re.compile(
    r"(exit|with) code -?(9|15|137|143)\b|preempt|evict|unexpectedly (died|killed|terminated)"
    r"|(actor|node|worker|supervisor)\b.{0,60}\b(died|dead|killed|lost|terminated|unavailable|failed)\b"
    r"|supervisor actor\b.*\bis already taken"  # by the job of a node that was lost a moment ago
    r"|failed to connect|ConnectionError|connection (refused|reset|aborted)|timed out",
    re.IGNORECASE,
)
"""What clusters say of a machine that went away, or that cannot be reached now: another try can pass."""
INTERRUPTIONS = (dg.DagsterExecutionInterruptedError, KeyboardInterrupt)
LOGS = "last available logs"
"""After these words a cluster repeats what the stage itself has said."""


@dataclass(frozen=True)
class Launch:
    """A stage to run: its request, the store for the artifact, and the pool that it runs in."""

    stage: Stage[Any]
    request: Request
    store: Store
    pool: Pool
    context: dg.AssetExecutionContext
    pool_name: str = ""

    @property
    def key(self) -> str:
        """The key of the artifact."""
        return self.stage.key(self.request)

    @property
    def name(self) -> str:
        """The job's name on a cluster: one for each store and key, whoever asks; at most 47 lower-case characters."""
        return f"align-{json_digest({'store': self.store.shown, 'kind': self.stage.kind, 'key': self.key})[:40]}"


class Launcher(Protocol):
    """Runs stages in one kind of process."""

    def run(self, launch: Launch) -> Commit:
        """Runs the stage until its artifact is committed; raises if it fails."""
        ...


class StepLauncher:
    """Starts no process of its own, so the stage ends whenever its step ends."""

    def run(self, launch: Launch) -> Commit:
        """Runs the stage in this process on GPUs of its own; raises what the stage raises."""
        take_for_this_process(launch.pool.gpus_per_slot, launch.pool_name)
        return execute(launch.stage, launch.request, launch.store)


@dataclass(frozen=True)
class Program:
    """What a launcher starts: the arguments of a Python, and an environment that anybody may read."""

    arguments: list[str]
    environment: dict[str, str]
    pool: Pool = field(repr=False)
    elastic: bool = False
    """Whether the ranks go on without one that is lost, or with another in its place (`Stage.elastic`)."""

    def python(self, node: int = 0, meet_at: tuple[str, int] | None = None) -> list[str]:
        """Arguments of the Python of one node: the stage itself, or torchrun with as many as the node has ranks.

        `meet_at` is the address and port of the first node, where there are several.
        """
        if self.pool.world_size == 1:
            return self.arguments
        options = torchrun_options(self.pool.nodes, self.pool.processes_per_node, node, meet_at, self.elastic)
        return [*options, *self.arguments]


OWN_MEETING = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Ranks that are started again meet in a store of their own: in torchrun's they would find the addresses of the lost
ones (torch 2.13), and wait for them for ever."""
LOST_NODE = 5
"""Seconds between two signs of life of a node whose loss the others outlive; after three without one it is lost."""


def torchrun_options(
    nodes: int, processes: int, node: int, meet_at: tuple[str, int] | None, elastic: bool
) -> list[str]:
    """Arguments of Python that start torchrun on one node; `meet_at` is where the nodes meet, None for a single one.

    `elastic` ranks are started again, up to `RETRIES` times, when one of them is lost. Where they were on several
    nodes, as many go on as there are: torchrun counts the nodes anew, and takes in one that comes later.
    """
    options = ["-m", "alignment.stages.ranks", "--nproc-per-node", str(processes)]
    options += ["--max-restarts", str(RETRIES)] if elastic else []
    if meet_at is None:
        return [*options, "--standalone"]
    address, port = meet_at
    if not elastic:
        options += ["--nnodes", str(nodes), "--node-rank", str(node)]
        return [*options, "--master-addr", address, "--master-port", str(port)]
    settings = f"is_host={node == 0},keep_alive_interval={LOST_NODE}"
    options += ["--nnodes", f"1:{nodes}", "--rdzv-id", "align", "--rdzv-backend", "c10d"]
    return [*options, "--rdzv-endpoint", f"{address}:{port}", "--rdzv-conf", settings]


class ProgramLauncher(ABC):
    """Starts the stage as a program of its own, once for each key, and waits for its commit."""

    ends_with_step = False
    """Whether the program ends whenever the step's process does. Then this process holds the key while several ranks
    work; else the program's first rank does, and a later step finds the program at work."""
    elsewhere = True
    """Whether the program runs on other machines than the step."""

    @abstractmethod
    def start(self, launch: Launch, program: Program) -> None:
        """Runs the program to its end, or finds the one that is running for the same key and waits for it.

        Its output and its progress go to the Dagster run. Raises whatever its client raises for a program that failed,
        and lets interruptions through: `stop` follows them.
        """

    @abstractmethod
    def stop(self, launch: Launch, program: Program) -> None:
        """Ends the program of a step that a person has cancelled. None that is at work is no error."""

    def run(self, launch: Launch) -> Commit:
        """Finds or makes the artifact.

        Raises `BadInput` for what a person has to mend, `dg.RetryRequested` where another try can pass, and
        `MissingArtifact` if nothing was committed.
        """
        stage, store = launch.stage, launch.store
        holds = self.ends_with_step and launch.pool.world_size > 1
        held: AbstractContextManager[None] = store.building(stage.kind, launch.key) if holds else nullcontext()
        with held:
            if (commit := store.find(stage.kind, launch.key)) is not None:
                store.remove_folder(store.path("launches", launch.name))  # of a try that did not see the end
                return commit
            self._run(launch, {KEY_IS_HELD: launch.key} if holds else {})
        if (commit := store.find(stage.kind, launch.key)) is None:
            raise MissingArtifact(
                f"{stage.name} ended without an error in pool {launch.pool_name}, and committed nothing"
            )
        return commit

    def _run(self, launch: Launch, held: dict[str, str]) -> None:
        store, folder = launch.store, launch.store.path("launches", launch.name)
        request, bad_input = f"{folder}/request.json", f"{folder}/bad_input.txt"
        elastic = launch.stage.elastic and not getattr(launch.request, "sharded", False)
        environment = {
            **(OWN_MEETING if elastic else {}),
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // launch.pool.processes_per_node)),
            "ALIGN_STORE": store.url,
            BAD_INPUT_FILE: store.fs.unstrip_protocol(bad_input),
            **{name: os.environ[name] for name in (DAGSTER_RUN, RECIPE_NAME, POOL) if name in os.environ},
            **(held if self.ends_with_step else {JOB: launch.name}),
            **handed_on(file.url for file in launch.request.source_files()),
        }
        if self.elsewhere:
            del environment["OMP_NUM_THREADS"]  # the machine there says how many it has
            _refuse_secrets(launch, environment)
        store.replace(request, launch.request.model_dump_json().encode())
        arguments = ["-m", "alignment.stages", launch.stage.name, "--request", store.fs.unstrip_protocol(request)]
        if not self.elsewhere:
            arguments += ["--cache", str(store.cache)]
        program = Program(arguments, environment, launch.pool, elastic)
        again = False
        try:
            self.start(launch, program)
        except BaseException as error:
            if (interruption := interruption_behind(error)) is not None:
                undisturbed(lambda: self._stop(launch, program))
                raise interruption from None
            if not isinstance(error, Exception):
                raise
            if store.find(launch.stage.kind, launch.key) is not None:  # only the client did not see its end
                return
            if store.fs.exists(bad_input):
                raise BadInput(store.fs.cat_file(bad_input).decode()) from None
            raised = failure_of(error, launch)
            again = isinstance(raised, dg.RetryRequested)
            if raised is error:
                raise
            raise raised from error
        finally:
            if not again:  # else a job that waits may still have to read its request
                store.remove_folder(folder)

    def _stop(self, launch: Launch, program: Program) -> None:
        try:
            self.stop(launch, program)
        except Exception as error:  # the step has to end as cancelled all the same
            launch.context.log.warning(
                f"{launch.stage.name} in pool {launch.pool_name}: {launch.name} could not be stopped and may be at"
                f" work: {_last_line(shown(f'{type(error).__name__}: {error}'))}"
            )


def undisturbed(work: Callable[[], None]) -> None:
    """Does work to its end whatever interrupts it. Work that was begun may be begun again.

    Ctrl-C reaches a step twice, from the terminal and from the run's process, and the second time it lands in the
    middle of what the first one has started.
    """
    done = False
    while not done:
        with suppress(*INTERRUPTIONS), capture_interrupts():
            work()
            done = True


def _refuse_secrets(launch: Launch, environment: dict[str, str]) -> None:
    """A job's environment stands in the cluster's pages and logs: credentials must be there already."""
    for name, value in environment.items():
        if shown(value) != value:
            raise BadInput(
                f"pool {launch.pool_name} starts jobs on other machines, and the address in {name} holds a password or"
                " a query, which is not sent there: give the credentials in the environment of those machines",
                field=f"pools.{launch.pool_name}",
            )


def failure_of(error: Exception, launch: Launch) -> Exception:
    """What to raise for a program that failed, from what the cluster's client says of it."""
    told = shown(f"{type(error).__name__}: {error}")
    where = f"{launch.stage.name} in pool {launch.pool_name}"
    if NOT_INSTALLED.search(told):
        return BadInput(f"{where}: the image or environment there has no alignment-dags: {_last_line(told)}")
    if LOST.search(told.partition(LOGS)[0]) or "SIGKILL" in told:
        launch.context.log.warning(f"{where}: {_last_line(told)}; goes on in {PAUSE} s where it was")
        return dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=PAUSE)
    return error


def interruption_behind(error: BaseException) -> BaseException | None:
    """The interruption of a cancelled step that an error hides: a client may fail while it stops what it reads."""
    return next((one for one in chain(error) if isinstance(one, INTERRUPTIONS)), None)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), text)
