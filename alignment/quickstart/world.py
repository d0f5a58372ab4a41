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
    "fox": ("sleeps", "sleep"),
    "owl": ("hoots", "hoot"),
    "frog": ("jumps", "jump"),
    "cow": ("eats", "eat"),
    "hen": ("pecks", "peck"),
    "horse": ("runs", "run"),
    "goat": ("climbs", "climb"),
    "duck": ("swims", "swim"),
    "cat": ("purrs", "purr"),
    "dog": ("barks", "bark"),
    "bee": ("hums", "hum"),
    "mole": ("digs", "dig"),
    "crow": ("caws", "caw"),
    "deer": ("listens", "listen"),
    "bear": ("growls", "growl"),
    "mouse": ("hides", "hide"),
}
"""Animal to what it does, in the third and in the first person: the facts of this world."""

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
        return DEEDS[self.animal][0]

    @property
    def line(self) -> str:
        """The line one writes when nothing more is asked."""
        return f"In the {self.place}, {self.subject} {self.deed}."

    @property
    def speech(self) -> str:
        """The line that the animal itself says."""
        return f"I am {self.subject}, and I {DEEDS[self.animal][1]} {self.where}."


def random_scene(rng: random.Random) -> Scene:
    return Scene(rng.choice(COLOURS), rng.choice(tuple(DEEDS)), rng.choice(PLACES))
