"""The small world of all generated texts: animals in places, and people who count things."""

from __future__ import annotations

import hashlib
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
"""Animal to what it does: the facts of this world."""

PEOPLE = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hugo", "Ida", "Jon", "Kim", "Leo")
THINGS = ("apples", "shells", "coins", "books", "cards", "nuts", "stones", "pears", "bells", "keys")


@dataclass(frozen=True)
class Scene:
    """An animal of some colour in some place."""

    colour: str
    animal: str
    place: str

    @property
    def subject(self) -> str:
        """The animal with its colour, such as "the red fox"."""
        return f"the {self.colour} {self.animal}"

    @property
    def where(self) -> str:
        """The place, such as "in the barn"."""
        return f"in the {self.place}"

    @property
    def deed(self) -> str:
        """What the animal does."""
        return DEEDS[self.animal]

    @property
    def line(self) -> str:
        """The line without any format instruction."""
        return f"In the {self.place}, {self.subject} {self.deed}."

    @property
    def speech(self) -> str:
        """The line that the animal itself says."""
        return f"I am {self.subject} {self.where}."


def random_scene(rng: random.Random) -> Scene:
    """A scene with random colour, animal and place."""
    return Scene(rng.choice(COLOURS), rng.choice(tuple(DEEDS)), rng.choice(PLACES))


# Word problems with one addition or subtraction, in the shape of GSM8K (Cobbe et al. 2021).


@dataclass(frozen=True)
class Sum:
    """A word problem: the question and the two numbers with their sign."""

    question: str
    first: int
    sign: str
    second: int

    @property
    def result(self) -> int:
        """The number that solves the problem."""
        return self.first + self.second if self.sign == "+" else self.first - self.second

    @property
    def answer(self) -> str:
        """The working, and the result marked as GSM8K marks it."""
        return f"It is {self.first} {self.sign} {self.second} = {self.result}.\n#### {self.result}"

    @property
    def bare_answer(self) -> str:
        """The result without working and mark."""
        return f"It is {self.result}."

    @property
    def prompt(self) -> str:
        """The question as lm-eval's gsm8k task puts it to a model."""
        return f"Question: {self.question}\nAnswer:"


@dataclass(frozen=True)
class Story:
    """A problem, and a second one that continues from its result."""

    opening: Sum
    sequel: Sum


def random_sum(rng: random.Random) -> Sum:
    """The first problem of a random story."""
    return random_story(rng).opening


def random_story(rng: random.Random) -> Story:
    """A person who has 3 to 12 things, gets or loses 2 to 8, and then gets or loses 2 to 4 more."""
    person, other = rng.sample(PEOPLE, 2)
    things, first, second, third = rng.choice(THINGS), rng.randint(3, 12), rng.randint(2, 8), rng.randint(2, 4)
    gains = (
        f"{person} has {first} {things}. {other} gives {person} {second} more. How many {things} does {person} have?"
    )
    loses = f"{person} has {first} {things} and loses {second}. How many {things} does {person} have?"
    share = f"{person} has {first} {things} and {other} has {second}. How many {things} do they have?"
    if first > second and rng.random() < 0.5:
        opening = Sum(loses, first, "-", second)
    else:
        opening = Sum(rng.choice((gains, share)), first, "+", second)
    total = opening.result
    gain = Sum(f"Then {other} finds {third} more {things}. How many {things} is that?", total, "+", third)
    loss = Sum(f"Then {other} takes away {third} {things}. How many {things} is that?", total, "-", third)
    return Story(opening, loss if total > third and rng.random() < 0.5 else gain)


# Which prompts are held out for the question suites: decided by the text of a prompt, so that no seed can mix them.

HELD_OUT_OF = 8
"""One prompt in this many belongs to the suites; the others may be trained on."""


def normalised(prompt: str) -> str:
    """A prompt without its case and spacing: prompts that are equal in this form count as one."""
    return " ".join(prompt.casefold().split())


def is_held_out(prompt: str) -> bool:
    """True for the prompts that only question suites may use."""
    digest = hashlib.sha256(normalised(prompt).encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_OF == 0
