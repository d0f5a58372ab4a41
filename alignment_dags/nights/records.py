"""The record of every night, in the store at `nights/<recipe>/<night id>.json`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

from pydantic import ValidationError

from alignment.recipe import Recipe
from alignment.store import Store
from alignment_dags.nights.night import Night

FOLDER = "nights"


SET_ASIDE = ".unreadable"
"""Ends the name of a record that could not be read, behind its own."""


class NightBook:
    """A recipe's nights. The schedule adds them, the recipe's sensor alone changes them."""

    def __init__(self, store: Store, recipe: str) -> None:
        self.store = store
        self.recipe = recipe
        self.unreadable: dict[str, str] = {}
        """Records that were met and hold no night: path → what is wrong."""

    def latest(self) -> Iterator[Night]:
        """All nights, the latest first; each is read when it is asked for. What holds no night is no reason to keep
        the others from their turn: it is noted in `unreadable`."""
        folder = self.store.path(FOLDER, self.recipe)
        try:
            names = self.store.fs.ls(folder, detail=False)
        except FileNotFoundError:
            return
        for name in sorted((str(name) for name in names if str(name).endswith(".json")), reverse=True):
            if (night := self._read(name)) is not None:
                yield night

    def open_nights(self) -> list[Night]:
        """Nights that are not closed, the latest first. What lies before a night that took its turn is closed."""
        found = []
        for night in self.latest():
            if night.is_open:
                found.append(night)
            elif night.outcome != "missed":
                break
        return found

    def add(self, night: Night) -> bool:
        """Records a night; False if it is there already, as when a tick is evaluated twice."""
        path = self._path(night)
        if self.store.fs.exists(path) or self.store.fs.exists(path + SET_ASIDE):
            return False
        self.write(night)
        return True

    def write(self, night: Night) -> None:
        """Replaces the night's record, whole or not at all."""
        self.store.replace(self._path(night), night.model_dump_json(indent=1).encode())

    def _path(self, night: Night) -> str:
        return self.store.path(FOLDER, self.recipe, f"{night.id}.json")

    def _read(self, path: str) -> Night | None:
        try:
            return Night.model_validate_json(self.store.fs.cat_file(path))
        except ValidationError as error:
            self.unreadable[path] = f"not a night's record ({error.error_count()} errors)"
        except FileNotFoundError:  # set aside since it was listed
            pass
        return None

    def set_aside(self, path: str) -> None:
        """Takes a record that cannot be read out of the nights; renamed back, it is one of them again."""
        self.store.fs.mv(path, path + SET_ASIDE)
        self.unreadable.pop(path)


# A recipe's latest nights as plain data.


def latest_nights(store: Store, recipe: Recipe, last: int, ids: Collection[str] | None = None) -> dict[str, Any]:
    """The last nights (of `ids`, where given), the latest first; `took` is what a night cost in one line, None where it
    launched nothing."""
    schedule = recipe.schedule
    book = NightBook(store, recipe.name)
    nights = list(islice((night for night in book.latest() if ids is None or night.id in ids), last))
    return {
        "recipe": recipe.name,
        "schedule": None if schedule is None else f"{schedule.cron} {schedule.timezone}",
        "nights": [
            {**night.model_dump(mode="json"), "id": night.id, "took": night.costs.told() if night.costs else None}
            for night in nights
        ],
        "unreadable": book.unreadable,
    }
