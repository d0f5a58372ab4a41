"""A node: one stage of one recipe, for the graph, the plan and Dagster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import dagster as dg

from alignment.guards import Guards
from alignment.recipe.training import Optimisation
from alignment.stages.stage import POLICY, Request, Stage
from alignment.store import Commit, Store
from assets.building.upstream import Upstream
from resources.mlflow import Tracking
from resources.pools import Pool

Make = Callable[["Work"], Commit]
PhaseName = Literal["base", "shards", "reference", "train"]
PHASES: tuple[PhaseName, ...] = get_args(PhaseName)
"""In the order they run: base model and SFT; rows of shards; their reference log-probs; manifest onward."""


class NotNeeded(Exception):
    """A node has nothing to make now; the message says why."""


@dataclass(frozen=True)
class Work:
    """A request whose artifact is missing, and what a node may use to make it."""

    stage: Stage[Any]
    request: Request
    store: Store
    tracking: Tracking
    pool: Pool | None
    context: dg.AssetExecutionContext
    pool_name: str = ""


@dataclass(frozen=True)
class Shown:
    """What a person sees of an artifact beside the numbers of its summary.

    `history` has one dict a training step. `first` names texts of the summary that stand above all else; `markdown`
    maps a metadata name to text, in the order in which Dagster shows it; what is not the project's own text in it is
    escaped. `pages` maps a name to a page of MLflow (`mlflow_page`). `files` go to MLflow; HTML files are linked.
    `plotted` are the numbers Dagster plots, where all of the summary would be too many.
    """

    first: tuple[str, ...] = ()
    pages: dict[str, str] = field(default_factory=dict)
    plotted: dict[str, float] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    markdown: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def show_nothing(commit: Commit, folder: Path) -> Shown:
    """Shows nothing beside the summary."""
    return Shown()


def not_reported_elsewhere(upstream: Upstream, commit: Commit) -> bool:
    """The artifact is reported as this node's own."""
    return False


def no_objection(request: Any, commit: Commit | None) -> None:
    """No objection."""


def publish_nothing(store: Store, tracking: Tracking, commit: Commit) -> None:
    """Publishes nothing."""
    return None


def all_rows(rows: float) -> float:
    """All of them."""
    return rows


@dataclass(frozen=True)
class Node:
    """One stage of one recipe.

    `request` builds the stage's request from upstream artifacts (of one shard, if `partitioned`); it raises `NotNeeded`
    if there is nothing to make. `show` adds to the report. In a run, a node comes after all nodes in `needs` and
    `after`; the plan knows its request as soon as it knows its `needs`.
    """

    name: str
    phase: PhaseName
    """The Dagster run it is made in: a run cannot mix nodes with shards and nodes without."""
    stage: Stage[Any]
    description: str
    kinds: frozenset[str]
    needs: tuple[str, ...]
    request: Callable[[Upstream, str | None], Request]
    show: Callable[[Commit, Path], Shown] = show_nothing
    make: Make | None = None
    """Makes the artifact in a way of its own; None makes it as nearly every node does (`run_stage`)."""
    partitioned: bool = False
    pool: str | None = None
    is_checkpoint: bool = False
    training: Optimisation | None = None
    """The settings of a node that trains, for the plan."""
    rows: Callable[[float], float] = all_rows
    """How many of the recipe's preference rows a node trains on or scores, for the plan."""
    after: tuple[str, ...] = ()
    object_to: Callable[[Any, Commit | None], None] = no_objection
    """Raises `BadInput` for a valid request whose artifact (the commit, if it is made) the recipe could not use. Plans
    call it, so that the mistake shows before anything is trained."""
    reported_elsewhere: Callable[[Upstream, Commit], bool] = not_reported_elsewhere
    """Whether another node has reported the same artifact, so that no run is launched to report it again. Only for a
    node whose readers find it in the store by its key and not by its ref."""
    publish: Callable[[Store, Tracking, Commit], None] = publish_nothing
    """Publishes the artifact outside the store; called at every materialization, safe to repeat."""
    alone: bool = False
    """One materialization at a time for a recipe, from the request to the ref, as each depends on the one before."""
    automation: dg.AutomationCondition[dg.AssetKey] | None = None
    guards: Guards | None = None
    """Checks on the artifact, each an asset check in Dagster; only for a node without shards, since Dagster's checks of
    a partition are a preview."""

    @property
    def adopts(self) -> bool:
        """Whether its policy is one that another node has made: the winner of a sweep or of averages, the best of the
        rounds. An average of its own has a pool."""
        return self.stage.kind == POLICY and self.training is None and self.pool is None
