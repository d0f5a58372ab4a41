"""A model's registrations in the store: all of them, and the champion's."""

from __future__ import annotations

from contextlib import suppress

from alignment.errors import BadInput
from alignment.recipe import Recipe, load_recipe
from alignment.store import Artifact, Commit, Store
from alignment.store.erase import all_commits
from alignment.store.store import refs_of
from alignment_dags.recipes import is_recipe, recipe_names
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
        raise BadInput(why_unregistered(store, model))
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


def why_unregistered(store: Store, model: str) -> str:
    """Why a model has no version: its recipe, which a person may have named by its file, registers none or has not
    registered one yet; or nothing here has this name."""
    unknown = f"no registered model '{model}' in {store.shown}"
    recipe = _recipe_of(store, model)
    if recipe is None:
        return unknown
    if recipe.model_name != model and registrations_of(store, recipe.model_name):
        return f"{unknown}: recipe {recipe.name} registers {recipe.model_name}; name that"
    policy = store.read_ref(recipe.name, "policy_checkpoint")
    where = "it has no policy yet" if policy is None else f"its policy is at {_place(store, policy.artifact)}"
    by_hand = "" if policy is None else f"; `align promote {recipe.model_name} --override --reason WHY` registers it"
    if recipe.gate == "none":
        return f"recipe {recipe.name} registers nothing: gate: none; {where}{by_hand}"
    return f"{unknown}: recipe {recipe.name} has registered nothing yet; {where}{by_hand}"


def _place(store: Store, artifact: Artifact) -> str:
    return store.path(artifact.kind, artifact.key, artifact.attempt) if store.is_local else store.uri(artifact)


def _recipe_of(store: Store, model: str) -> Recipe | None:
    """The recipe that a person means by its file or name, or by the name of its model: one in use, derived, or run on
    this machine before."""
    from alignment_dags.run.shards import owner_file

    if is_recipe(model):
        return load_recipe(model)
    names = recipe_names()
    file = names.get(model) or owner_file(store, model)
    for path in (file,) if file else names.values():
        with suppress(BadInput):  # another file's mistake, or a file that is gone
            recipe = load_recipe(path)
            if file or recipe.model_name == model:
                return recipe
    return None
