"""One prompt with the reply people prefer and the one they do not: the unit all quickstart data is made of."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from alignment.quickstart.instructions import Check, Wish, follow, random_wishes
from alignment.quickstart.sums import Sum, random_sum
from alignment.quickstart.world import Scene, random_scene

TWO_INSTRUCTIONS = 0.15
"""Share of formatted prompts with two instructions."""


@dataclass(frozen=True)
class Exchange:
    """`demonstrated` is the share of SFT demonstrations that give the preferred reply; `checks` grade any reply."""

    prompt: str
    preferred: str
    other: str
    demonstrated: float = 1.0
    checks: list[Check] = field(default_factory=list)
    wishes: tuple[Wish, ...] = ()

    def demonstration(self, rng: random.Random) -> str:
        return self.preferred if rng.random() < self.demonstrated else self.other


def line_exchange(scene: Scene, wishes: tuple[Wish, ...]) -> Exchange:
    """A line about a scene under format instructions; the other reply ignores them."""
    return Exchange(
        prompt=" ".join((f"Write a line about {scene.subject} {scene.where}.", *(wish.text for wish in wishes))),
        preferred=follow(scene, wishes),
        other=scene.line,
        demonstrated=min((wish.instruction.demonstrated for wish in wishes), default=1.0),
        checks=line_checks(scene, wishes),
        wishes=wishes,
    )


def line_checks(scene: Scene, wishes: tuple[Wish, ...]) -> list[Check]:
    about = [{"kind": "contains", "value": scene.animal}, {"kind": "contains", "value": scene.place}]
    return [*about, *(check for wish in wishes for check in wish.checks)]


def sum_exchange(problem: Sum, *, prompt: str | None = None) -> Exchange:
    """A sum in GSM8K's shape; the other reply is as right and shows no working.

    Not a wrong result: DPO on pairs that differ in the result alone makes sums worse, not better.
    """
    return Exchange(
        prompt=prompt or problem.prompt,
        preferred=problem.answer,
        other=problem.bare_answer,
        checks=[{"kind": "regex", "value": rf"#### {problem.result}$"}],
    )


def random_line(rng: random.Random) -> Exchange:
    return line_exchange(random_scene(rng), random_wishes(rng, TWO_INSTRUCTIONS))


def random_plain_line(rng: random.Random) -> Exchange:
    """A line with no instruction; the other reply follows one that nobody gave."""
    scene = random_scene(rng)
    return replace(line_exchange(scene, ()), other=follow(scene, random_wishes(rng)))


def random_sum_exchange(rng: random.Random) -> Exchange:
    return sum_exchange(random_sum(rng))
