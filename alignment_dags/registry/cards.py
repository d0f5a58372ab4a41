"""`align card` and `align publish`: a version's card, and the champion's publication."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignment.errors import BadInput
from alignment.recipe import Publish, Recipe
from alignment.store import Store
from alignment_dags.registry.promote import recipe_of
from alignment_dags.registry.registrations import name_and_version, registration_of
from assets.card import Card, card_of
from assets.publication import publish_model
from assets.registration import RegistrationSummary
from resources.store import ArtifactStore


def write_card(model: str, out: Path | None) -> dict[str, Any]:
    """What the card of MODEL[@champion|@VERSION] says, as plain data, with its `text` or, if `out` is given, its
    `file`."""
    store = ArtifactStore().open()
    card = card_for(store, model)
    if out is None:
        return card.about | {"text": card.text, "file": None}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(card.text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot be written: {error.strerror}", file=str(out), field="--out") from error
    return card.about | {"file": str(out)}


def card_for(store: Store, model: str, adapter: bool = False) -> Card:
    """The card of MODEL[@champion|@VERSION], or of its adapter, with the licences that its recipe gives by now."""
    name, version = name_and_version(model)
    registration = registration_of(store, name, version)
    try:
        written = recipe_of(name)[1].written
    except BadInput:  # no longer in use
        written = None
    return card_of(store, registration, written, adapter=adapter)


def show_card(result: dict[str, Any]) -> None:
    """Prints the card, or where it was written."""
    print(result["text"] if result["file"] is None else result["file"], end="" if result["file"] is None else "\n")


def publish_champion(model: str, file: Path | None) -> dict[str, Any]:
    """`model`, `version`, `place`, `done` (False: it was there), `withheld` (why not at all) and what is `unknown`."""
    _, recipe = recipe_of(model, file)
    store = ArtifactStore().open()
    registration = registration_of(store, *name_and_version(model))
    outcome = publish_model(store, registration, _settings(recipe, file), recipe.written)
    return {
        "model": model,
        "version": RegistrationSummary.of(registration).model_version[1],
        "place": outcome.place,
        "done": outcome.done,
        "withheld": outcome.withheld,
        "unknown": list(outcome.unknown),
    }


def _settings(recipe: Recipe, file: Path | None) -> Publish:
    if recipe.publish is None:
        raise BadInput(
            "the recipe has no section publish: give it `publish: {folder: …}` or `publish: {hub: …}`",
            file=None if file is None else str(file),
            field="publish",
        )
    return recipe.publish


def show_published(result: dict[str, Any]) -> None:
    """Prints where the champion is, or why it is not published."""
    name = f"{result['model']} version {result['version']}"
    if result["withheld"]:
        print(f"{name} was not published: {result['withheld']}")
        return
    print(f"{name}: {result['place']}{'' if result['done'] else ', as before'}")
    if result["unknown"]:
        print(f"its card does not know: {'; '.join(result['unknown'])}")
