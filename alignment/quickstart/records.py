"""Draws exchanges and conversations with fresh prompts from one side of the hold-out, and writes them as messages."""

from __future__ import annotations

import random
from collections.abc import Callable

from alignment.quickstart.exchanges import Exchange
from alignment.quickstart.holdout import is_held_out, normalised

Message = dict[str, str]
Turns = tuple[Exchange, ...]
Make = Callable[[random.Random], Turns]


class Source:
    """Draws turns whose user prompts all stand on one side; no two draws say the same."""

    def __init__(self, rng: random.Random, *, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out
        self._seen: set[tuple[str, ...]] = set()

    def draw(self, make: Make) -> Turns:
        while True:
            turns = make(self.rng)
            said = tuple(normalised(turn.prompt) for turn in turns)
            if said not in self._seen and all(is_held_out(turn.prompt) == self.held_out for turn in turns):
                self._seen.add(said)
                return turns


def history(turns: Turns, rng: random.Random) -> list[Message]:
    """The messages up to the last prompt, earlier replies as demonstrations give them."""
    messages: list[Message] = []
    for turn in turns[:-1]:
        messages += [user(turn.prompt), assistant(turn.demonstration(rng))]
    return [*messages, user(turns[-1].prompt)]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def single(make: Callable[[random.Random], Exchange]) -> Make:
    """A maker of one exchange as a maker of a conversation of one turn."""
    return lambda rng: (make(rng),)


def first_turn(make: Make) -> Make:
    """Only the opening of what a maker makes."""
    return lambda rng: make(rng)[:1]
