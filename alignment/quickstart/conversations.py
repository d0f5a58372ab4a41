"""Conversations of two turns, by MT-Bench's categories (Zheng et al. 2023)."""

from __future__ import annotations

import random
from collections.abc import Callable

from alignment.quickstart.exchanges import Exchange, line_checks, line_exchange, sum_exchange
from alignment.quickstart.instructions import RARELY, follow, random_wishes
from alignment.quickstart.sums import random_story
from alignment.quickstart.world import DEEDS, PLACES, Scene, random_scene

Conversation = tuple[Exchange, Exchange]


def two_scenes(rng: random.Random) -> tuple[Scene, Scene]:
    """Two scenes that differ in animal and place."""
    first = random_scene(rng)
    while True:
        second = random_scene(rng)
        if second.animal != first.animal and second.place != first.place:
            return first, second


def writing(rng: random.Random) -> Conversation:
    """A formatted line, and the same for another scene: the second turn has to remember the instruction."""
    first, second = two_scenes(rng)
    opening = line_exchange(first, random_wishes(rng))
    return opening, Exchange(
        prompt=f"Do the same for {second.subject} {second.where}.",
        preferred=follow(second, opening.wishes),
        other=second.line,
        demonstrated=opening.demonstrated,
        checks=line_checks(second, opening.wishes),
    )


def roleplay(rng: random.Random) -> Conversation:
    """An animal speaks, then another one in capital letters."""
    first, second = two_scenes(rng)
    return (
        Exchange(
            prompt=f"Speak as {first.subject} {first.where}.",
            preferred=first.speech,
            other=first.speech.upper(),
            checks=[{"kind": "starts_with", "value": "I am"}, {"kind": "contains", "value": first.animal}],
        ),
        Exchange(
            prompt=f"Now speak as {second.subject} {second.where}. Use capital letters.",
            preferred=second.speech.upper(),
            other=second.speech,
            demonstrated=RARELY,
            checks=[
                {"kind": "regex", "value": f"(?i){second.animal}"},
                {"kind": "regex", "value": f"(?i){second.place}"},
                {"kind": "regex", "value": "^[^a-z]+$"},
            ],
        ),
    )


def math(rng: random.Random) -> Conversation:
    """A word problem, and one that goes on from its result."""
    story = random_story(rng)
    return sum_exchange(story.opening), sum_exchange(story.sequel, prompt=story.sequel.question)


def extraction(rng: random.Random) -> Conversation:
    """The animal of one line, then the place of another."""
    first, second = two_scenes(rng)
    return (
        _fact(f"Which animal is in this line? {first.line}", f"{first.animal}.", tuple(DEEDS), rng),
        _fact(f"Which place is in this one? {second.line}", f"{second.place}.", PLACES, rng),
    )


def stem(rng: random.Random) -> Conversation:
    """What one animal does, then another."""
    first, second = two_scenes(rng)
    deeds = tuple(DEEDS.values())
    return (
        _fact(f"What does {first.subject} do {first.where}?", f"{first.deed}.", deeds, rng),
        _fact(f"And what does {second.subject} do {second.where}?", f"{second.deed}.", deeds, rng),
    )


def _fact(prompt: str, right: str, possible: tuple[str, ...], rng: random.Random) -> Exchange:
    """A question with one right word; the other reply is another word of its kind."""
    wrong = rng.choice([word for word in possible if word != right.rstrip(".")])
    return Exchange(
        prompt=prompt,
        preferred=f"It is: {right}",
        other=f"It is: {wrong}.",
        checks=[{"kind": "contains", "value": right.rstrip(".")}, {"kind": "max_words", "value": 5}],
    )


CATEGORIES: dict[str, Callable[[random.Random], Conversation]] = {
    "writing": writing,
    "roleplay": roleplay,
    "math": math,
    "extraction": extraction,
    "stem": stem,
}
