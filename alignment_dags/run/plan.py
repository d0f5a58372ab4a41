"""What is out of date, decided by recomputing keys down the graph and looking them up in the store."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Literal

from alignment.data.hub import HubUnreachable
from alignment.data.shards import names_on_the_hub
from alignment.data.withdrawal import Withdrawn
from alignment.errors import BadInput
from alignment.store import Commit, Ref, Store
from alignment_dags.run.workspace import Workspace
from assets.building.node import Node, NotNeeded
from assets.building.upstream import Upstream
from resources.compute import check_packages, check_residency

State = Literal["current", "unreported", "missing", "waiting"]


@dataclass(frozen=True)
class Planned:
    """One node (one shard of it) as it stands.

    `current`: made and reported, or there is nothing to make. `unreported`: made, its report to MLflow or its ref is
    outstanding. `missing`: to be made. `waiting`: not known before something above it is made.
    """

    node: Node
    shard: str | None
    state: State
    commit: Commit | None = None
    key: str | None = None
    """Under which it stands or will be made; None while that is not known."""


class PlannedUpstream(Upstream):
    """Artifacts as they will be: those the plan has found, and the store's refs for what it has not come to."""

    def __init__(self, store: Store, recipe: str, withdrawn: Withdrawn | None = None) -> None:
        super().__init__(store, recipe)
        self._withdrawn = withdrawn

    def foresee(self, name: str, shard: str | None, commit: Commit, ref: Ref | None) -> None:
        """Takes it that the node, or its shard, will be this artifact."""
        same = ref is not None and ref.artifact == commit.artifact
        self._refs[name, shard] = ref if same else Ref(artifact=commit.artifact)

    def not_known(self, name: str) -> None:
        """What is there of a node now is not what will be: whoever does not wait for it goes without."""
        self._refs[name, None] = None


def plan(
    workspace: Workspace,
    nodes: Iterable[Node] | None = None,
    only: Iterable[str] | None = None,
    refused: dict[str, str] | None = None,
    unreached: dict[str, str] | None = None,
    withdrawn: Withdrawn | None = None,
) -> list[Planned]:
    """Every node (of `nodes`, where given) and shard (of `only` these), upstream first.

    Raises `BadInput` for a place outside of the recipe's region, for a package that is not here, and for sources a
    person has to mend; where `refused` is given, a shard that cannot be read waits, and `refused` is told why. Raises
    `HubUnreachable`; where `unreached` is given, a node that needs the hub's answer waits, and `unreached` is told why
    by the node's name. `withdrawn` is what the recipe must not use, where that is not what the store says of it.
    """
    recipe = workspace.recipe
    check_residency(recipe, workspace.pools, workspace.store)
    check_packages(recipe, workspace.pools)
    upstream = PlannedUpstream(workspace.store, recipe.name, withdrawn)
    try:
        shards = list(upstream.shards(recipe) if only is None else only)
    except HubUnreachable:
        if unreached is None:
            raise
        shards = names_on_the_hub(recipe.preferences)
    planned: list[Planned] = []
    unknown: dict[str, set[str | None]] = {}
    for node in workspace.nodes if nodes is None else nodes:
        for shard in shards if node.partitioned else [None]:
            try:
                one = _plan(node, shard, upstream, unknown)
            except BadInput as error:
                if shard is None or refused is None:
                    raise
                refused[shard] = str(error)
                one = Planned(node, shard, "waiting")
            except HubUnreachable as error:
                if unreached is None:
                    raise
                unreached[node.name] = str(error)
                one = Planned(node, shard, "waiting")
            planned.append(one)
            if one.state in ("missing", "waiting"):
                unknown.setdefault(node.name, set()).add(shard)
                if shard is None:
                    upstream.not_known(node.name)
    return planned


def _plan(node: Node, shard: str | None, upstream: PlannedUpstream, unknown: dict[str, set[str | None]]) -> Planned:
    if any(waits(shard, unknown[need]) for need in node.needs if need in unknown):
        return Planned(node, shard, "waiting")
    try:
        request = node.request(upstream, shard)
    except NotNeeded:
        return Planned(node, shard, "current")
    key = node.stage.key(request)
    commit = upstream.store.find(node.stage.kind, key)
    node.object_to(request, commit)
    if commit is None:
        return Planned(node, shard, "missing", key=key)
    ref = upstream.store.read_ref(upstream.recipe, node.name, shard)
    upstream.foresee(node.name, shard, commit, ref)
    reported = ref is not None and ref.artifact == commit.artifact and ref.mlflow_run_id is not None
    reported = reported or node.reported_elsewhere(upstream, commit)
    return Planned(node, shard, "current" if reported else "unreported", commit, key)


def waits(shard: str | None, unknown: Set[str | None]) -> bool:
    """Whether what is unknown above keeps a shard waiting: itself or a whole; a whole waits for any shard."""
    return shard is None or shard in unknown or None in unknown
