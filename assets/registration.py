"""What a registration says of itself, and what a person decided over the gate's head: to return to an earlier
version, or to promote despite the verdict.

A decision is about one candidate, the recipe's policy of that moment. It is written down first, then carried out by
`registered_model` as a registration like any other, and from then on stands in that registration's commit. A new
candidate is the gate's to judge again.
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
    """What `registered_model` says: the model version it made, or `why` it registered nothing.

    `recipe` is the recipe's text and `said` the answer to the smoke prompt. `decision` is the person's that was carried
    out, with the verdict that it overruled as `gate`; not set where the gate decided. `alias_moved` says that the alias
    was not where the registration before had put it.
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
    """Writes a decision down, to be carried out by the next materialization of `registered_model`."""
    store.replace(_path(store, recipe), decision.model_dump_json(indent=1).encode())


def drop_decision(store: Store, recipe: str) -> None:
    """Takes back what was written down and not carried out."""
    if store.fs.exists(_path(store, recipe)):
        store.fs.rm_file(_path(store, recipe))


def decision_of(registration: Commit) -> Decision | None:
    """The decision that a registration carried out, or None where the gate decided."""
    return RegistrationSummary.of(registration).decision


def decision_for(upstream: Upstream, candidate: Artifact) -> Decision | None:
    """The decision that holds for a candidate: one still to be carried out, or that of the latest registration.

    One that was carried out before other registrations is spent: it never comes back by itself.
    """
    latest = upstream.get("registered_model")
    carried_out = None if latest is None else decision_of(upstream.store.commit_of(latest))
    written = _written(upstream.store, upstream.recipe)
    waiting = written is not None and written != carried_out and written.candidate == candidate.digest
    if waiting and written not in [decision_of(commit) for commit in registrations(upstream.store, latest)]:
        return written
    return carried_out if carried_out is not None and carried_out.candidate == candidate.digest else None


def registrations(store: Store, latest: Artifact | None) -> list[Commit]:
    """A registration and all that it follows, newest first."""
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
