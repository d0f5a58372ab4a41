"""The champion: the policy that was registered last. A new candidate is compared with it.

Registrations form a chain: each names the registration before it. A registration that registered nothing
(`gate: none`) is skipped, so that it never hides the champion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from alignment.errors import BadInput
from alignment.store import Artifact, Commit, Store
from assets.building.upstream import Upstream
from assets.registration import Decision, RegistrationSummary, decision_of
from eval.gate.scores import answered_by
from resources.mlflow import CHAMPION, REGISTRATION_TAG, Tracking

SCORES = "scores."


@dataclass(frozen=True)
class Champion:
    """The current registration, its policy and the policy's scores by suite; all empty before the first."""

    registration: Artifact | None = None
    policy: Artifact | None = None
    scores: dict[str, Artifact] = field(default_factory=dict)
    version: str | None = None
    decision: Decision | None = None
    """The decision of a person that promoted it; None if the gate promoted it."""

    @property
    def note(self) -> str:
        """A note for readers of a comparison with it; empty if the gate promoted it."""
        if self.decision is None:
            return ""
        return f"The champion, version {self.version}, was {self.decision.description}."


def champion_for(upstream: Upstream, candidate: Artifact | None) -> Champion:
    """The champion that a candidate is compared with; `candidate` is None if it is not made yet.

    Registrations of the candidate itself are skipped, and so are those that a person decided while it was the
    candidate: a finished comparison that is repeated must give the same champion.
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
    """The champion of a registration, or of the nearest registration before it that registered a policy."""
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


# Whether the alias `champion` in MLflow is on the champion of the store's registrations.


def moved_by_hand(
    store: Store, tracking: Tracking, model: str, latest: Artifact | None, registering: str | None = None
) -> str | None:
    """A message when the alias is not where the latest registration set it; None when it is.

    `registering` is the key of a registration that may have moved the alias before it was interrupted. Raises
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


# Whether a report and scores are of a policy. A person may overrule a verdict, but not this check.


def check_evaluated(
    store: Store, policy: Artifact, report: Artifact | None, scores: Mapping[str, Artifact | None]
) -> None:
    """Raises `BadInput` unless there are a report and scores of every suite for this policy.

    With those of another policy it would be a champion that no later candidate can be compared with.
    """
    about = {"report": None if report is None else store.commit_of(report).inputs["policy"]}
    for suite, artifact in scores.items():
        about[f"{suite} scores"] = None if artifact is None else answered_by(store, artifact)
    for what, measured in about.items():
        if measured is None or measured.digest != policy.digest:
            there = "there is none" if measured is None else f"it is of policy {measured.digest[:12]}"
            raise BadInput(f"policy {policy.digest[:12]} has no {what} ({there}): evaluate it first")
