"""The champion: the policy registered last, which a new candidate has to stand beside."""

from __future__ import annotations

from dataclasses import dataclass, field

from alignment.artifacts import Artifact
from assets.upstream import Upstream

SCORES = "scores."


@dataclass(frozen=True)
class Champion:
    """A registered policy and its scores by suite; `policy` is None before anything was registered."""

    policy: Artifact | None = None
    scores: dict[str, Artifact] = field(default_factory=dict)


def champion_beside(upstream: Upstream, candidate: Artifact) -> Champion:
    """Whom a candidate is compared with.

    A candidate that is itself the champion is compared with whom it was compared with when it was
    registered: looking again at a finished comparison must give the same one.
    """
    registration = upstream.get("registered_model")
    if registration is None:
        return Champion()
    inputs = upstream.store.commit_of(registration).inputs
    if inputs["policy"].digest != candidate.digest:
        return Champion(inputs["policy"], _scores(inputs, SCORES))
    compared = upstream.store.commit_of(inputs["report"]).inputs
    return Champion(compared.get("champion"), _scores(compared, "champion_scores."))


def _scores(inputs: dict[str, Artifact], prefix: str) -> dict[str, Artifact]:
    return {name.removeprefix(prefix): artifact for name, artifact in inputs.items() if name.startswith(prefix)}
