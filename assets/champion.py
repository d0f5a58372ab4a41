"""The champion: the policy registered last, which a new candidate has to stand beside.

Registrations form a chain: each names the one it follows. A registration that registered nothing (`gate: none`)
is passed over, so that it never hides the champion.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from alignment.artifacts import Artifact, Commit, Store
from assets.upstream import Upstream

SCORES = "scores."


@dataclass(frozen=True)
class Champion:
    """A registration that stands, its policy and that policy's scores by suite; all empty before the first."""

    registration: Artifact | None = None
    policy: Artifact | None = None
    scores: dict[str, Artifact] = field(default_factory=dict)


def champion_beside(upstream: Upstream, candidate: Artifact) -> Champion:
    """Whom a candidate is compared with.

    A candidate that is itself the latest is compared with whom it was compared with when it was registered:
    looking again at a finished comparison must give the same one.
    """
    latest = upstream.get("registered_model")
    if latest is None:
        return Champion()
    commit = upstream.store.commit_of(latest)
    if commit.inputs["policy"].digest == candidate.digest:
        latest = commit.inputs.get("previous")
    return standing(upstream.store, latest)


def standing(store: Store, registration: Artifact | None) -> Champion:
    """The registration, or the nearest before it, that did register a policy."""
    while registration is not None:
        commit = store.commit_of(registration)
        if commit.summary["registered"]:
            return Champion(registration, commit.inputs["policy"], _scores(commit))
        registration = commit.inputs.get("previous")
    return Champion()


def _scores(commit: Commit) -> dict[str, Artifact]:
    return {name.removeprefix(SCORES): artifact for name, artifact in commit.inputs.items() if name.startswith(SCORES)}
