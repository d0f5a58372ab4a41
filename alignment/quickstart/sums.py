"""Word problems with one addition or subtraction, in the shape of GSM8K (Cobbe et al. 2021)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from alignment.quickstart.world import PEOPLE, THINGS


@dataclass(frozen=True)
class Sum:
    """A problem's question, its working and its result."""

    question: str
    first: int
    sign: str
    second: int

    @property
    def result(self) -> int:
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
    """A problem and one that goes on from its result."""

    opening: Sum
    sequel: Sum


def random_sum(rng: random.Random) -> Sum:
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
