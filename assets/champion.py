"""The champion: the policy registered last, which a new candidate has to stand beside.

Registrations form a chain: each names the one it follows. A registration that registered nothing (`gate: none`)
is passed over, so that it never hides the champion.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from alignment.store import Artifact, Commit, Store
from assets.decision import Decision, decision_of
from assets.upstream import Upstream

SCORES = "scores."


@dataclass(frozen=True)
class Champion:
    """A registration that stands, its policy and that policy's scores by suite; all empty before the first."""

    registration: Artifact | None = None
    policy: Artifact | None = None
    scores: dict[str, Artifact] = field(default_factory=dict)
    version: str | None = None
    decision: Decision | None = None
    """The person's decision it rests on, where it was not the gate's."""

    @property
    def note(self) -> str:
        """What a reader of a comparison with it must know; empty where the gate let it in."""
        return "" if self.decision is None else f"The champion, version {self.version}, was {self.decision.told}."


def champion_beside(upstream: Upstream, candidate: Artifact | None) -> Champion:
    """Whom a candidate is compared with; None is one that is still to be made.

    Registrations of the candidate itself, and those that a person decided on while it was the candidate, are passed
    over: looking again at a finished comparison must give the same one.
    """
    latest = upstream.get("registered_model")
    while latest is not None and candidate is not None:
        commit = upstream.store.commit_of(latest)
        decision = decision_of(commit)
        about_it = decision is not None and decision.candidate == candidate.digest
        if commit.inputs["policy"].digest != candidate.digest and not about_it:
            break
        latest = commit.inputs.get("previous")
    return standing(upstream.store, latest)


def standing(store: Store, registration: Artifact | None) -> Champion:
    """The registration, or the nearest before it, that did register a policy."""
    while registration is not None:
        commit = store.commit_of(registration)
        if commit.summary["registered"]:
            version = str(commit.summary["version"])
            return Champion(registration, commit.inputs["policy"], scores_of(commit), version, decision_of(commit))
        registration = commit.inputs.get("previous")
    return Champion()


def scores_of(commit: Commit) -> dict[str, Artifact]:
    """The scores that a registration pins, by suite."""
    return {name.removeprefix(SCORES): artifact for name, artifact in commit.inputs.items() if name.startswith(SCORES)}
