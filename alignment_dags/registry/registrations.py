"""A model's registrations in the store: all of them, and the champion's."""

from __future__ import annotations

from alignment.errors import BadInput
from alignment.store import Commit, Store
from alignment.store.erase import all_commits
from alignment.store.store import refs_of
from assets.champion import registered_champion
from assets.registration import RegistrationSummary
from resources.mlflow import CHAMPION

REGISTERED = "registered_model"


def registrations_of(store: Store, model: str) -> list[Commit]:
    """Every registration of a model, newest first."""
    registrations = [
        commit
        for commit in all_commits(store, REGISTERED)
        if (summary := RegistrationSummary.of(commit)).registered and summary.model == model
    ]
    return sorted(registrations, key=lambda commit: commit.started_at, reverse=True)


def champion_of(store: Store, model: str) -> Commit | None:
    """The current registration by a recipe's ref; if the refs are lost, the newest that no other one follows."""
    for named in refs_of(store, REGISTERED):
        registration = registered_champion(store, named.ref.artifact).registration
        if registration is not None:
            commit = store.commit_of(registration)
            if RegistrationSummary.of(commit).model == model:
                return commit
    registrations = registrations_of(store, model)
    followed = {commit.inputs["previous"].digest for commit in registrations if "previous" in commit.inputs}
    return next((commit for commit in registrations if commit.digest not in followed), None)


def name_and_version(model: str) -> tuple[str, str]:
    """The parts of MODEL, MODEL@champion or MODEL@version; `champion` if none is named."""
    name, _, wanted = model.partition("@")
    return name, wanted or CHAMPION


def registration_of(store: Store, model: str, wanted: str) -> Commit:
    """The latest registration of a version, or that of the champion; raises `BadInput` if there is none."""
    registrations = registrations_of(store, model)
    if not registrations:
        raise BadInput(f"no registered model '{model}' in {store.shown}")
    if wanted == CHAMPION:
        champion = champion_of(store, model)
        assert champion is not None
        return champion
    latest: dict[str, Commit] = {}
    for commit in registrations:
        latest.setdefault(RegistrationSummary.of(commit).model_version[1], commit)
    if wanted in latest:
        return latest[wanted]
    versions = sorted(latest, key=lambda name: (len(name), name))
    raise BadInput(f"model '{model}' has no version '{wanted}'; versions: {', '.join(versions)}")
