"""The champion: the policy registered last, which a new candidate has to stand beside.

Registrations form a chain: each names the one it follows. A registration that registered nothing (`gate: none`)
is passed over, so that it never hides the champion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from alignment.errors import BadInput
from alignment.store import Artifact, Commit, Store
from assets.building.upstream import Upstream
from assets.registration import Decision, RegistrationSummary, decision_of
from eval.gate.evidence import answered_by
from resources.mlflow import CHAMPION, REGISTRATION_TAG, Tracking

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
        if self.decision is None:
            return ""
        return f"The champion, version {self.version}, was {self.decision.description}."


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
    return registered_champion(upstream.store, latest)


def registered_champion(store: Store, registration: Artifact | None) -> Champion:
    """The registration, or the nearest before it, that did register a policy."""
    while registration is not None:
        commit = store.commit_of(registration)
        summary = RegistrationSummary.of(commit)
        if summary.registered:
            _, version = summary.model_version
            return Champion(registration, commit.inputs["policy"], scores_of(commit), version, summary.decision)
        registration = commit.inputs.get("previous")
    return Champion()


def scores_of(commit: Commit) -> dict[str, Artifact]:
    """The scores that a registration pins, by suite."""
    return {name.removeprefix(SCORES): artifact for name, artifact in commit.inputs.items() if name.startswith(SCORES)}


# The alias `champion` in MLflow against the champion that the store's registrations say there is.


def moved_by_hand(
    store: Store, tracking: Tracking, model: str, latest: Artifact | None, registering: str | None = None
) -> str | None:
    """What to tell a person when the alias is not where the latest registration put it; None when it is.

    `registering` is the key of a registration that may have moved it before it was cut short. Raises
    `TrackingUnreachable` when MLflow does not answer.
    """
    ours, alias = registered_champion(store, latest).version, tracking.aliased(model)
    theirs, tags = alias or (None, {})
    if ours == theirs or (registering is not None and tags.get(REGISTRATION_TAG) == registering):
        return None
    where = f"on version {theirs}" if theirs else "gone"
    if ours is None:
        return f"the alias {CHAMPION} of {model} is {where}, and nothing was registered yet: somebody set it by hand"
    return (
        f"the alias {CHAMPION} of {model} is {where}, the registered champion is version {ours}: somebody moved it by"
        f" hand; set it with `align promote {model} --to VERSION`"
    )


# Whether a policy is the one that a report and scores are about; a person may overrule a verdict, not this.


def check_evaluated(
    store: Store, policy: Artifact, report: Artifact | None, scores: Mapping[str, Artifact | None]
) -> None:
    """Raises `BadInput` unless the report and the scores of every suite are there and of this very policy.

    Registered with another's, it would be a champion that no later candidate can be compared with.
    """
    about = {"report": None if report is None else store.commit_of(report).inputs["policy"]}
    for suite, artifact in scores.items():
        about[f"{suite} scores"] = None if artifact is None else answered_by(store, artifact)
    for what, measured in about.items():
        if measured is None or measured.digest != policy.digest:
            there = "there is none" if measured is None else f"it is of policy {measured.digest[:12]}"
            raise BadInput(f"policy {policy.digest[:12]} has no {what} ({there}): evaluate it first")
