"""A model's registrations in the store: all of them, and the champion's."""

from __future__ import annotations

from alignment.store import Commit, Store
from alignment.store.erase import all_commits
from alignment.store.store import refs_of
from assets.champion import standing

REGISTERED = "registered_model"


def registrations_of(store: Store, model: str) -> list[Commit]:
    """Every registration of a model, newest first."""
    found = [
        commit
        for commit in all_commits(store, REGISTERED)
        if commit.summary["registered"] and commit.summary["model"] == model
    ]
    return sorted(found, key=lambda commit: commit.started_at, reverse=True)


def champion_of(store: Store, model: str) -> Commit | None:
    """The registration that a recipe's ref stands on; where refs are lost, the newest that no other follows."""
    for named in refs_of(store, REGISTERED):
        registration = standing(store, named.ref.artifact).registration
        if registration is not None:
            commit = store.commit_of(registration)
            if commit.summary["model"] == model:
                return commit
    found = registrations_of(store, model)
    followed = {commit.inputs["previous"].digest for commit in found if "previous" in commit.inputs}
    return next((commit for commit in found if commit.digest not in followed), None)
