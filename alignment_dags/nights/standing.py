"""How a recipe stands, as far as a night has to know: what is behind, by phase, decided by recomputed keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from alignment.artifacts import Commit, Store
from alignment.recipe import Recipe
from alignment_dags.phases import phases_of
from alignment_dags.plan import Planned, plan
from alignment_dags.watching import look as watching
from assets.graph import nodes_of
from assets.preference_shard import preference_shard
from assets.upstream import Upstream
from resources.pools import Pools


@dataclass(frozen=True)
class Standing:
    """What is behind. `base` and `train` name nodes; `shards` and `reference` name shards.

    `reference` has only shards whose rows are built. `train` is as things stand, so that shards which are behind
    do not make it so. `verdict` is that of the evaluation report, if that is up to date; `manifest` the data
    version of the manifest that would be trained on, if it is made. `unsettled` and `unreadable` shards map to why:
    the first may be read in a moment, the second not before somebody mends them.
    """

    base: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    unsettled: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    total: int = 0
    verdict: str | None = None
    manifest: str | None = None
    commits: tuple[Commit, ...] = ()

    @property
    def behind(self) -> tuple[str, ...]:
        """Shards that are not ready, each once."""
        return tuple(dict.fromkeys((*self.shards, *self.reference, *self.unsettled, *self.unreadable)))


def look(recipe: Recipe, pools: Pools, store: Store) -> Standing:
    """Where a recipe stands now. Raises `BadInput` where the source cannot be listed."""
    nodes = nodes_of(recipe, pools)
    seen = watching.look(recipe, preference_shard(recipe), Upstream(store, recipe.name))
    planned = plan(recipe, nodes, store, seen.keys)
    phases = {phase.name: {node.name for node in phase.nodes} for phase in phases_of(recipe, pools)}
    base = tuple(one.node.name for one in planned if one.node.name in phases["base"] and one.state != "current")
    shards = _shards_behind(planned, phases["shards"])
    unbuilt = {one.shard for one in planned if one.node.name in phases["shards"] and one.commit is None}
    reference = _shards_behind(planned, phases.get("reference", set()))
    train = [] if base else plan(recipe, [node for node in nodes if node.name in phases["train"]], store)
    made = {one.node.name: one.commit for one in train if one.commit is not None}
    report, manifest = made.get("evaluation_report"), made.get("preference_manifest")
    return Standing(
        base=base,
        shards=shards,
        reference=tuple(shard for shard in reference if shard not in unbuilt),
        train=tuple(one.node.name for one in train if one.state != "current"),
        unsettled=seen.waiting,
        unreadable=seen.unreadable,
        total=len(seen.names),
        verdict=None if report is None else str(report.summary["verdict"]),
        manifest=None if manifest is None else manifest.digest,
        commits=tuple(one.commit for one in (*planned, *train) if one.commit is not None),
    )


def _shards_behind(planned: list[Planned], names: set[str]) -> tuple[str, ...]:
    return tuple(
        one.shard for one in planned if one.shard is not None and one.node.name in names and one.state != "current"
    )


def made_since(standing: Standing, moment: datetime) -> Iterator[Commit]:
    """The commits that were begun at or after a moment."""
    return (commit for commit in standing.commits if datetime.fromisoformat(commit.started_at) >= moment)
