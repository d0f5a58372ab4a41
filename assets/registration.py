"""The summary of a registration, and the decision of a person who overrules the gate: to return to an earlier
version, or to promote despite the verdict.

A decision is about one candidate, the recipe's policy at that moment. It is written to the store first. Then
`registered_model` carries it out as a normal registration and records it in that registration's commit. The gate
judges every new candidate again.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from alignment.store import Artifact, Commit, Store, Summary
from assets.building.upstream import Upstream


class Decision(BaseModel):
    """`candidate` is the digest of the policy it is about; a rollback returns to the policy of `registration`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["rollback", "override"]
    candidate: str
    registration: Artifact | None = None
    reason: str
    by: str
    at: str

    @property
    def description(self) -> str:
        """Who decided what, when and why, as the end of a sentence."""
        what = "promoted despite the gate" if self.kind == "override" else "returned to"
        return f"{what} by {self.by} on {self.at}" + (f": {self.reason}" if self.reason else "")


class RegistrationSummary(Summary):
    """The summary of `registered_model`: the model version that it made, or `why` it registered nothing.

    `recipe` is the recipe's text and `said` the answer to the smoke prompt. `decision` is the person's decision, and
    `gate` the verdict that it overruled; neither is set if the gate decided. `alias_moved` says that the alias was
    not where the registration before had set it.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

    registered: bool = False
    why: str | None = None
    model: str | None = None
    recipe: str | None = None
    decision: Decision | None = None
    gate: str | None = None
    alias_moved: str | None = None
    said: str | None = None
    version: str | None = None

    @property
    def model_version(self) -> tuple[str, str]:
        """Model and version of a registration that registered a policy."""
        assert self.model is not None and self.version is not None
        return self.model, self.version


def write_decision(store: Store, recipe: str, decision: Decision) -> None:
    """Writes a decision, which the next materialization of `registered_model` carries out."""
    store.replace(_path(store, recipe), decision.model_dump_json(indent=1).encode())


def drop_decision(store: Store, recipe: str) -> None:
    """Removes a decision that was written and not carried out."""
    if store.fs.exists(_path(store, recipe)):
        store.fs.rm_file(_path(store, recipe))


def decision_of(registration: Commit) -> Decision | None:
    """The decision that a registration carried out; None if the gate decided."""
    return RegistrationSummary.of(registration).decision


def decision_for(upstream: Upstream, candidate: Artifact) -> Decision | None:
    """The decision that applies to a candidate: a waiting decision, or that of the latest registration.

    A decision that was carried out before other registrations never applies again.
    """
    latest = upstream.get("registered_model")
    carried_out = None if latest is None else decision_of(upstream.store.commit_of(latest))
    written = _written(upstream.store, upstream.recipe)
    waiting = written is not None and written != carried_out and written.candidate == candidate.digest
    if waiting and written not in [decision_of(commit) for commit in registrations(upstream.store, latest)]:
        return written
    return carried_out if carried_out is not None and carried_out.candidate == candidate.digest else None


def registrations(store: Store, latest: Artifact | None) -> list[Commit]:
    """A registration and all registrations before it, newest first."""
    chain: list[Commit] = []
    while latest is not None:
        chain.append(store.commit_of(latest))
        latest = chain[-1].inputs.get("previous")
    return chain


def _written(store: Store, recipe: str) -> Decision | None:
    try:
        return Decision.model_validate_json(store.fs.cat_file(_path(store, recipe)))
    except FileNotFoundError:
        return None


def _path(store: Store, recipe: str) -> str:
    return store.path("decisions", f"{recipe}.json")
