"""How a recipe stands, as far as a night has to know: what is behind, by phase, decided by recomputed keys.

A current shard costs one look at its ref, so that thousands of them are looked at in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from alignment.recipe import Gate
from alignment.store import Ref
from alignment_dags.run.plan import plan
from alignment_dags.run.upgrade import Moved, Upgrades, moved_stages
from alignment_dags.run.workspace import MANIFEST, Workspace
from alignment_dags.source.observe import LOOK_SECONDS, observe
from assets.building.node import Node
from assets.building.upstream import Upstream
from eval.gate.bounded import NEW_ROWS
from eval.stages.evaluation_report import ReportSummary


@dataclass(frozen=True)
class State:
    """What is behind. `base` and `train` name nodes; `shards` and `reference` name shards.

    `reference` has only shards whose rows are built. `manifest_behind` is whether another manifest would be pinned
    now, and `pinning` names what is made for that; `train` is what is behind the manifest that is pinned, the data
    version of which is `manifest`. `incoming` is what is behind of the measurement of rows that wait, and `bounded` is
    whether the gate bounds what that says. `verdict` is that of the evaluation report, if that is up to date.
    `unsettled` and `unreadable` shards map to why: the first may be read in a moment, the second not before somebody
    mends them. `upgrade` is what this version makes anew and nobody has accepted; `accepted_at` is when a person last
    accepted such.
    """

    base: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()
    manifest_behind: bool = False
    pinning: tuple[str, ...] = (MANIFEST,)
    train: tuple[str, ...] = ()
    incoming: tuple[str, ...] = ()
    bounded: bool = False
    unsettled: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    total: int = 0
    verdict: str | None = None
    manifest: str | None = None
    upgrade: tuple[Moved, ...] = ()
    accepted_at: datetime | None = None

    @property
    def behind(self) -> tuple[str, ...]:
        """Shards that are not ready, each once."""
        return tuple(dict.fromkeys((*self.shards, *self.reference, *self.unsettled, *self.unreadable)))


def state_of(workspace: Workspace, budget: float = LOOK_SECONDS) -> State:
    """What is behind now; new content is read for `budget` seconds. Raises `BadInput` where the source cannot be
    listed."""
    phases = {phase.name: phase.nodes for phase in workspace.phases}
    upstream = workspace.upstream()
    (rows,) = phases["shards"]
    seen = observe(workspace.recipe, rows, upstream, budget)
    refs = upstream.refs(rows.name)
    shards = tuple(name for name, key in seen.keys.items() if not current(refs.get(name), key))
    base = tuple(one.node.name for one in plan(workspace, phases["base"], ()) if one.state != "current")
    state = State(base=base, shards=shards, unsettled=seen.waiting, unreadable=seen.unreadable, total=len(seen.names))
    ready = [name for name in seen.keys if name not in set(shards)]
    if base:
        return _with_upgrade(state, workspace, upstream, {rows.name: ready})
    scorers = phases.get("reference", ())
    behind = {node.name: _not_scored(node, ready, upstream) for node in scorers}
    scored = {name: [shard for shard in ready if shard not in set(late)] for name, late in behind.items()}
    state = _with_upgrade(state, workspace, upstream, {rows.name: ready} | scored)
    reference = [shard for late in behind.values() for shard in late]
    pinned = plan(workspace, workspace.pinning, ())
    measured = plan(workspace, workspace.measuring, ())
    first = {node.name for node in (*workspace.pinning, *workspace.measuring)}
    after = [node for node in phases["train"] if node.name not in first]
    ref = upstream.ref(MANIFEST)
    planned = [] if ref is None else plan(workspace, after, ())
    gate = workspace.recipe.gate
    report = next((one.commit for one in planned if one.node.name == "evaluation_report"), None)
    return replace(
        state,
        reference=tuple(reference),
        manifest_behind=any(one.state != "current" for one in pinned),
        pinning=tuple(one.node.name for one in pinned if one.state != "current") or (MANIFEST,),
        train=tuple(one.node.name for one in planned if one.state != "current"),
        incoming=tuple(one.node.name for one in measured if one.state != "current"),
        bounded=isinstance(gate, Gate) and any(name.startswith(f"{NEW_ROWS}/") for name in gate.metrics),
        verdict=None if report is None else ReportSummary.of(report).verdict,
        manifest=None if ref is None else ref.artifact.digest,
    )


def _with_upgrade(state: State, workspace: Workspace, upstream: Upstream, current: Mapping[str, list[str]]) -> State:
    """The state with what this version makes anew; `current` maps nodes to shards that are up to date."""
    upgrades = Upgrades(workspace.store, workspace.recipe.name)
    waiting = upgrades.waiting(moved_stages(workspace.nodes, upstream, current))
    accepted = upgrades.accepted
    return replace(state, upgrade=waiting, accepted_at=None if accepted is None else accepted.at)


def current(ref: Ref | None, key: str) -> bool:
    """Whether a ref names the artifact of this key, and that was reported."""
    return ref is not None and ref.artifact.key == key and ref.mlflow_run_id is not None


def _not_scored(node: Node, shards: list[str], upstream: Upstream) -> list[str]:
    refs = upstream.refs(node.name)
    return [name for name in shards if not current(refs.get(name), node.stage.key(node.request(upstream, name)))]
