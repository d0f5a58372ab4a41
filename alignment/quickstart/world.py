"""The small world that every generated text is about: animals in places, and people who count things."""

from __future__ import annotations

import random
from dataclasses import dataclass

COLOURS = ("red", "grey", "brown", "black", "white", "golden", "spotted", "young", "old", "small", "big", "quiet")
PLACES = (
    "barn",
    "mill",
    "garden",
    "forest",
    "valley",
    "meadow",
    "river",
    "harbour",
    "village",
    "orchard",
    "cave",
    "hut",
)
DEEDS = {
    "fox": "sleeps",
    "owl": "hoots",
    "frog": "jumps",
    "cow": "eats",
    "hen": "pecks",
    "horse": "runs",
    "goat": "climbs",
    "duck": "swims",
    "cat": "purrs",
    "dog": "barks",
    "bee": "hums",
    "mole": "digs",
    "crow": "caws",
    "deer": "listens",
    "bear": "growls",
    "mouse": "hides",
}
"""Animal to what it does, the facts of this world."""

PEOPLE = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hugo", "Ida", "Jon", "Kim", "Leo")
THINGS = ("apples", "shells", "coins", "books", "cards", "nuts", "stones", "pears", "bells", "keys")


@dataclass(frozen=True)
class Scene:
    """An animal of some look in some place."""

    colour: str
    animal: str
    place: str

    @property
    def subject(self) -> str:
        return f"the {self.colour} {self.animal}"

    @property
    def where(self) -> str:
        return f"in the {self.place}"

    @property
    def deed(self) -> str:
        return DEEDS[self.animal]

    @property
    def line(self) -> str:
        """The line one writes when nothing more is asked."""
        return f"In the {self.place}, {self.subject} {self.deed}."

    @property
    def speech(self) -> str:
        """The line that the animal itself says."""
        return f"I am {self.subject} {self.where}."


def random_scene(rng: random.Random) -> Scene:
    return Scene(rng.choice(COLOURS), rng.choice(tuple(DEEDS)), rng.choice(PLACES))
