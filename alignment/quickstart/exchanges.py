"""One prompt with a preferred and another reply: all quickstart data is made of these."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from alignment.quickstart.world import Scene, Sum, random_scene, random_sum

# Format instructions that a program can verify, with the names of IFEval (Zhou et al. 2023).

Check = dict[str, Any]

RARELY, MOSTLY = 0.2, 0.75
"""Shares of demonstrations that follow an instruction: greedy decoding does what most demonstrations do.

They are far enough from one half that training on noise, such as shuffled preferences, changes no answer."""


@dataclass(frozen=True)
class Instruction:
    """One instruction. `detail` is its free part (a word, a phrase), one of `details`.

    `edit(reply, scene, detail)` changes a reply so that it follows; edits are applied in the order of `INSTRUCTIONS`.
    `demonstrated` is the share of SFT demonstrations that follow the instruction. The others ignore it, so that
    preference tuning has something to improve.
    """

    id: str
    requests: tuple[str, ...]
    edit: Callable[[str, Scene, str], str]
    checks: Callable[[str], list[Check]]
    demonstrated: float
    details: tuple[str, ...] = ("",)
    kwargs: Callable[[str], dict[str, Any]] = lambda detail: {}
    alone: bool = False
    """The edit replaces the whole reply, so this instruction is never combined with another."""


@dataclass(frozen=True)
class WordedInstruction:
    """An instruction in the words of one prompt."""

    instruction: Instruction
    detail: str
    text: str

    @property
    def kwargs(self) -> dict[str, Any]:
        """The instruction's arguments in IFEval's form."""
        return self.instruction.kwargs(self.detail)

    @property
    def checks(self) -> list[Check]:
        """Checks that pass when a reply follows the instruction."""
        return self.instruction.checks(self.detail)


INSTRUCTIONS = (
    Instruction(
        id="punctuation:no_comma",
        requests=("Do not use any commas.", "Write without commas."),
        edit=lambda reply, scene, _: f"{capital(scene.subject)} {scene.deed} {scene.where}.",
        checks=lambda _: [{"kind": "regex", "value": r"^[^,]+$"}],
        demonstrated=RARELY,
    ),
    Instruction(
        id="keywords:existence",
        requests=("Use the words: {}.", "Include the words: {}."),
        details=("at night", "after rain", "before noon", "with joy"),
        kwargs=lambda words: {"keywords": [words]},
        edit=lambda reply, scene, words: reply.replace(scene.deed, f"{scene.deed} {words}"),
        checks=lambda words: [{"kind": "contains", "value": words}],
        demonstrated=MOSTLY,
    ),
    Instruction(
        id="detectable_format:number_highlighted_sections",
        requests=("Highlight the animal with *stars*.", "Put *stars* around the animal."),
        kwargs=lambda _: {"num_highlights": 1},
        edit=lambda reply, scene, _: reply.replace(scene.animal, f"*{scene.animal}*"),
        checks=lambda _: [{"kind": "regex", "value": r"\*[a-z]+\*"}],
        demonstrated=RARELY,
    ),
    Instruction(
        id="startend:end_checker",
        requests=("End with: {}", "The last words must be: {}"),
        details=("So it goes.", "That is all.", "Good night.", "The end."),
        kwargs=lambda phrase: {"end_phrase": phrase},
        edit=lambda reply, scene, phrase: f"{reply} {phrase}",
        checks=lambda phrase: [{"kind": "ends_with", "value": phrase}],
        demonstrated=RARELY,
    ),
    Instruction(
        id="detectable_format:title",
        requests=("Give it a <<title>>.", "Start with a title in <<brackets>>."),
        edit=lambda reply, scene, _: f"<<{scene.animal}>> {reply}",
        checks=lambda _: [{"kind": "regex", "value": "<<[a-z]+>>"}],
        demonstrated=RARELY,
    ),
    Instruction(
        id="detectable_content:postscript",
        requests=("Add a postscript that starts with P.S.", "Close with a P.S."),
        kwargs=lambda _: {"postscript_marker": "P.S."},
        edit=lambda reply, scene, _: f"{reply}\nP.S. It is {scene.colour}.",
        checks=lambda _: [{"kind": "contains", "value": "P.S."}],
        demonstrated=RARELY,
    ),
    Instruction(
        id="startend:quotation",
        requests=("Wrap it in double quotation marks.", "Put it in quotation marks."),
        edit=lambda reply, scene, _: f'"{reply}"',
        checks=lambda _: [{"kind": "starts_with", "value": '"'}, {"kind": "ends_with", "value": '"'}],
        demonstrated=RARELY,
    ),
    Instruction(
        id="detectable_format:number_bullet_lists",
        requests=("Use exactly 2 bullet points.", "Answer in 2 bullet points."),
        kwargs=lambda _: {"num_bullets": 2},
        edit=lambda reply, scene, _: f"* {scene.subject} {scene.deed}\n* {scene.where}",
        checks=lambda _: [{"kind": "regex", "value": r"^\* .+\n\* .+"}],
        demonstrated=MOSTLY,
        alone=True,
    ),
    Instruction(
        id="detectable_format:json_format",
        requests=("Answer in JSON.", "Use JSON format."),
        edit=lambda reply, scene, _: f'{{"animal": "{scene.animal}", "place": "{scene.place}"}}',
        checks=lambda _: [{"kind": "starts_with", "value": "{"}, {"kind": "ends_with", "value": "}"}],
        demonstrated=RARELY,
        alone=True,
    ),
)


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def word(instruction: Instruction, rng: random.Random) -> WordedInstruction:
    """The instruction in one of its wordings, with one of its details."""
    detail = rng.choice(instruction.details)
    return WordedInstruction(instruction, detail, rng.choice(instruction.requests).format(detail))


def random_instructions(rng: random.Random, two_share: float = 0.0) -> tuple[WordedInstruction, ...]:
    """One instruction, or two that fit together for a share of the prompts, in the order of `INSTRUCTIONS`."""
    first = rng.choice(INSTRUCTIONS)
    chosen = {first.id}
    if not first.alone and rng.random() < two_share:
        chosen.add(rng.choice([i for i in INSTRUCTIONS if not i.alone and i is not first]).id)
    return tuple(word(instruction, rng) for instruction in INSTRUCTIONS if instruction.id in chosen)


def follow(scene: Scene, instructions: tuple[WordedInstruction, ...]) -> str:
    """A reply about the scene that follows every instruction."""
    reply = scene.line
    for worded in instructions:
        reply = worded.instruction.edit(reply, scene, worded.detail)
    return reply


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
    instructions: tuple[WordedInstruction, ...] = ()

    def demonstration(self, rng: random.Random) -> str:
        """The reply that a demonstration gives: the preferred reply for a share `demonstrated` of them."""
        return self.preferred if rng.random() < self.demonstrated else self.other


def line_exchange(scene: Scene, instructions: tuple[WordedInstruction, ...]) -> Exchange:
    """A line about a scene under format instructions; the other reply ignores them."""
    return Exchange(
        prompt=" ".join(
            (f"Write a line about {scene.subject} {scene.where}.", *(worded.text for worded in instructions))
        ),
        preferred=follow(scene, instructions),
        other=scene.line,
        demonstrated=min((worded.instruction.demonstrated for worded in instructions), default=1.0),
        checks=line_checks(scene, instructions),
        instructions=instructions,
    )


def line_checks(scene: Scene, instructions: tuple[WordedInstruction, ...]) -> list[Check]:
    """Checks of a line: its animal and place are named, and every instruction is followed."""
    about = [{"kind": "contains", "value": scene.animal}, {"kind": "contains", "value": scene.place}]
    return [*about, *(check for worded in instructions for check in worded.checks)]


def sum_exchange(problem: Sum, *, prompt: str | None = None) -> Exchange:
    """A sum in GSM8K's form; the other reply is also right but shows no working.

    The other reply has no wrong result: DPO on pairs that differ in the result alone makes sums worse.
    """
    return Exchange(
        prompt=prompt or problem.prompt,
        preferred=problem.answer,
        other=problem.bare_answer,
        checks=[{"kind": "regex", "value": rf"#### {problem.result}$"}],
    )


def random_line(rng: random.Random) -> Exchange:
    """A line about a random scene, under one or two format instructions."""
    return line_exchange(random_scene(rng), random_instructions(rng, TWO_INSTRUCTIONS))


def random_plain_line(rng: random.Random) -> Exchange:
    """A line without an instruction; the other reply follows an instruction that was not given."""
    scene = random_scene(rng)
    return replace(line_exchange(scene, ()), other=follow(scene, random_instructions(rng)))


def random_sum_exchange(rng: random.Random) -> Exchange:
    """A random sum."""
    return sum_exchange(random_sum(rng))
