"""A node: one stage of one recipe, as the graph, the plan and Dagster all see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import dagster as dg

from alignment.stages import Request, Stage, execute
from alignment.store import Commit, Store
from assets.building.upstream import Upstream
from resources.launchers import Launch, launcher_for
from resources.mlflow import Tracking
from resources.pools import Pool

Make = Callable[["Work"], Commit]
PhaseName = Literal["base", "shards", "reference", "train"]
PHASES: tuple[PhaseName, ...] = get_args(PhaseName)
"""In the order they run: base model and SFT; rows of shards; their reference log-probs; manifest onward."""


class NotNeeded(Exception):
    """There is nothing for a node to make as things stand; the message says why."""


@dataclass(frozen=True)
class Work:
    """A request whose artifact is missing, and what a node may use to make it."""

    stage: Stage[Any]
    request: Request
    store: Store
    tracking: Tracking
    pool: Pool | None
    context: dg.AssetExecutionContext


def run_stage(work: Work) -> Commit:
    """How nearly every node makes its artifact: CPU stages here, GPU stages through the pool's launcher."""
    if work.pool is None:
        return execute(work.stage, work.request, work.store)
    launch = Launch(work.stage, work.request, work.store, work.pool, work.context)
    return launcher_for(work.pool).run(launch)


@dataclass(frozen=True)
class Shown:
    """What a person sees of an artifact beside the numbers of its summary.

    `history` has one dict a training step; `markdown` maps a metadata name to text; `files` go to MLflow;
    `plotted` are the numbers Dagster plots over time, where all of the summary would be too many.
    """

    plotted: dict[str, float] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    markdown: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def nothing_more(commit: Commit, folder: Path) -> Shown:
    """Shows nothing beside the summary."""
    return Shown()


def nowhere_else(upstream: Upstream, commit: Commit) -> bool:
    """The artifact is reported as this node's own."""
    return False


def nothing_against(request: Any, commit: Commit | None) -> None:
    """No objection."""


def nowhere(store: Store, tracking: Tracking, commit: Commit) -> None:
    """Publishes nothing."""
    return None


@dataclass(frozen=True)
class Node:
    """`request` turns upstream artifacts (of one shard, if `partitioned`) into what the stage is asked.

    It is the first move; `make` (on a miss) is the second; `show` is what this node adds to the third. A request that
    raises `NotNeeded` leaves nothing to do. In a run, a node comes after all that it names in `needs` and `after`; the
    plan knows what it makes as soon as it knows its `needs`.
    """

    name: str
    phase: PhaseName
    """The Dagster run it is made in: a run cannot mix shards with what has none."""
    stage: Stage[Any]
    description: str
    kinds: frozenset[str]
    needs: tuple[str, ...]
    request: Callable[[Upstream, str | None], Request]
    show: Callable[[Commit, Path], Shown] = nothing_more
    make: Make = run_stage
    partitioned: bool = False
    pool: str | None = None
    is_checkpoint: bool = False
    after: tuple[str, ...] = ()
    object_to: Callable[[Any, Commit | None], None] = nothing_against
    """Raises `BadInput` for a request that is sound while the recipe could not use what it makes (or has made: the
    commit). Whoever plans asks, so that nothing is trained before that shows."""
    reported_elsewhere: Callable[[Upstream, Commit], bool] = nowhere_else
    """Whether what was found is another node's and reported as that one's, so that no run is launched to report it
    again. Only for a node whose readers ask the store for its key and do not go by its ref."""
    publish: Callable[[Store, Tracking, Commit], None] = nowhere
    """What must be found elsewhere for the artifact to be of use; asked at every materialization, safe to repeat."""
    alone: bool = False
    """One at a time for a recipe, from the request to the ref: what it makes follows what it made before."""
    automation: dg.AutomationCondition[dg.AssetKey] | None = None
