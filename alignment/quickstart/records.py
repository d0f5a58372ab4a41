"""Draws exchanges and conversations with fresh prompts from one side of the hold-out, and writes them as messages."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from alignment.quickstart.exchanges import (
    RARELY,
    Exchange,
    follow,
    line_checks,
    line_exchange,
    random_instructions,
    random_line,
    random_plain_line,
    random_sum_exchange,
    sum_exchange,
)
from alignment.quickstart.world import (
    DEEDS,
    PLACES,
    Scene,
    is_held_out,
    normalised,
    random_scene,
    random_story,
    random_sum,
)

Message = dict[str, str]
Turns = tuple[Exchange, ...]
Make = Callable[[random.Random], Turns]


class Source:
    """Draws turns whose user prompts are all on one side of the hold-out; no two draws have the same prompts."""

    def __init__(self, rng: random.Random, *, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out
        self._seen: set[tuple[str, ...]] = set()

    def draw(self, make: Make) -> Turns:
        """The first turns by `make` that are on the right side of the hold-out and were not drawn before."""
        while True:
            turns = make(self.rng)
            said = tuple(normalised(turn.prompt) for turn in turns)
            if said not in self._seen and all(is_held_out(turn.prompt) == self.held_out for turn in turns):
                self._seen.add(said)
                return turns


def history(turns: Turns, rng: random.Random) -> list[Message]:
    """The messages up to the last prompt; earlier replies are those of demonstrations."""
    messages: list[Message] = []
    for turn in turns[:-1]:
        messages += [user(turn.prompt), assistant(turn.demonstration(rng))]
    return [*messages, user(turns[-1].prompt)]


def user(content: str) -> Message:
    """A message of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """A message of the assistant."""
    return {"role": "assistant", "content": content}


def single(make: Callable[[random.Random], Exchange]) -> Make:
    """Turns a maker of one exchange into a maker of conversations with one turn."""
    return lambda rng: (make(rng),)


def first_turn(make: Make) -> Make:
    """A maker of only the first turn of conversations."""
    return lambda rng: make(rng)[:1]


# Conversations of two turns, by MT-Bench's categories (Zheng et al. 2023).

Conversation = tuple[Exchange, Exchange]


def two_scenes(rng: random.Random) -> tuple[Scene, Scene]:
    """Two scenes that differ in animal and place."""
    first = random_scene(rng)
    while True:
        second = random_scene(rng)
        if second.animal != first.animal and second.place != first.place:
            return first, second


def writing(rng: random.Random) -> Conversation:
    """A formatted line, and the same for another scene: the second turn needs the instruction of the first."""
    first, second = two_scenes(rng)
    opening = line_exchange(first, random_instructions(rng))
    return opening, Exchange(
        prompt=f"Do the same for {second.subject} {second.where}.",
        preferred=follow(second, opening.instructions),
        other=second.line,
        demonstrated=opening.demonstrated,
        checks=line_checks(second, opening.instructions),
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
    """A word problem, and a second one that continues from its result."""
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
    """What one animal does, then what another does."""
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


# The preference pairs: follow the instruction, compute correctly, know the facts.

PREFERENCES: tuple[tuple[Make, int], ...] = (
    (single(random_line), 330),
    (single(random_plain_line), 20),
    (CATEGORIES["writing"], 140),
    (CATEGORIES["roleplay"], 70),
    (first_turn(CATEGORIES["roleplay"]), 20),
    (single(random_sum_exchange), 60),
    (CATEGORIES["math"], 30),
    (CATEGORIES["extraction"], 15),
    (CATEGORIES["stem"], 15),
)
"""The kinds of pairs in a shard, and how many of each."""


def preference_records(shard_index: int, seed: int) -> list[dict[str, Any]]:
    """A shard of 700 pairs in TRL's conversational form: `prompt`, `chosen`, `rejected`.

    Shards are numbered from 0 without end, like days, and no shard depends on the number of shards. Within a shard no
    prompt occurs twice.
    """
    if shard_index < 0:
        raise ValueError(f"shards are numbered from 0, not {shard_index}")
    rng = random.Random(f"{seed}/preferences/{shard_index}")
    source = Source(rng, held_out=False)
    pairs = [pair(source, make) for make, count in PREFERENCES for _ in range(count)]
    rng.shuffle(pairs)
    return pairs


def pair(source: Source, make: Make) -> dict[str, Any]:
    """One preference pair: the chosen and the rejected reply to the last prompt of a conversation."""
    turns = source.draw(make)
    return {
        "prompt": history(turns, source.rng),
        "chosen": [assistant(turns[-1].preferred)],
        "rejected": [assistant(turns[-1].other)],
    }


PROMPTS: tuple[tuple[Make, int], ...] = (
    (single(random_line), 100),
    (CATEGORIES["writing"], 40),
    (single(random_sum_exchange), 20),
)
"""The kinds of prompts in a part, and how many of each."""


def prompt_records(part: int, seed: int) -> list[dict[str, Any]]:
    """A part of 160 prompts to sample answers to: `prompt`, and as `rubric` the checks that a good answer passes.

    Parts are numbered from 0 without end. None of the prompts belongs to a question suite.
    """
    if part < 0:
        raise ValueError(f"parts are numbered from 0, not {part}")
    rng = random.Random(f"{seed}/prompts/{part}")
    source = Source(rng, held_out=False)
    conversations = [source.draw(make) for make, count in PROMPTS for _ in range(count)]
    rng.shuffle(conversations)
    return [{"prompt": history(turns, rng), "rubric": turns[-1].checks} for turns in conversations]


# The demonstrations for SFT. Many ignore a format instruction, so that preference tuning has something to improve.

Demonstration = dict[str, list[Message]]

DEMONSTRATIONS: tuple[tuple[Make, int], ...] = (
    (single(random_line), 5400),
    (single(random_plain_line), 600),
    (single(random_sum_exchange), 4500),
    (CATEGORIES["writing"], 2400),
    (CATEGORIES["math"], 1500),
    (CATEGORIES["roleplay"], 1200),
    (first_turn(CATEGORIES["roleplay"]), 300),
    (CATEGORIES["extraction"], 1200),
    (first_turn(CATEGORIES["extraction"]), 300),
    (CATEGORIES["stem"], 300),
    (first_turn(CATEGORIES["stem"]), 300),
)
"""The kinds of demonstrations, and how many of each."""


def sft_records(seed: int) -> list[Demonstration]:
    """18,000 conversations in messages form, `{"messages": [{"role", "content"}, …]}`, the same for one seed."""
    rng = random.Random(f"{seed}/sft")
    source = Source(rng, held_out=False)
    records = [demonstration(source, make) for make, count in DEMONSTRATIONS for _ in range(count)]
    rng.shuffle(records)
    return records


def demonstration(source: Source, make: Make) -> Demonstration:
    """One conversation for SFT."""
    turns = source.draw(make)
    reply = turns[-1].demonstration(source.rng)
    return {"messages": [*history(turns, source.rng), assistant(reply)]}


# The question sets, in the file formats of GSM8K, IFEval and MT-Bench; every answer can be verified by a program.

Item = dict[str, Any]

GSM8K_ITEMS = 250
IFEVAL_ITEMS = 250
MT_BENCH_ITEMS = {"writing": 32, "roleplay": 16, "math": 16, "extraction": 16, "stem": 16}


def suite_items(suite: str, seed: int) -> list[Item]:
    """The items of `gsm8k`, `ifeval` or `mt_bench`, none of whose prompts is ever trained on.

    MT-Bench questions carry a `rubric`: for each turn a list of checks `{"kind", "value"}`, graded as
    1 + 9 × the share of checks that the reply passes. Raises `KeyError` for another suite.
    """
    return SUITES[suite](random.Random(f"{seed}/{suite}"))


def gsm8k(rng: random.Random) -> list[Item]:
    """Word problems in GSM8K's form: `question` and `answer`."""
    items: dict[str, Item] = {}
    while len(items) < GSM8K_ITEMS:
        problem = random_sum(rng)
        if is_held_out(problem.prompt) and is_held_out(problem.question):
            items[problem.question] = {"question": problem.question, "answer": problem.answer}
    return list(items.values())


def ifeval(rng: random.Random) -> list[Item]:
    """Formatted lines in IFEval's form: `key`, `prompt`, `instruction_id_list` and `kwargs`."""
    source = Source(rng, held_out=True)
    items = []
    for key in range(IFEVAL_ITEMS):
        (exchange,) = source.draw(single(random_line))
        items.append(
            {
                "key": key,
                "prompt": exchange.prompt,
                "instruction_id_list": [worded.instruction.id for worded in exchange.instructions],
                "kwargs": [worded.kwargs for worded in exchange.instructions],
            }
        )
    return items


def mt_bench(rng: random.Random) -> list[Item]:
    """Two-turn questions in MT-Bench's form, each with a `rubric`."""
    source = Source(rng, held_out=True)
    categories = [category for category, count in MT_BENCH_ITEMS.items() for _ in range(count)]
    items = []
    for question_id, category in enumerate(categories, start=1):
        turns = source.draw(CATEGORIES[category])
        items.append(
            {
                "question_id": question_id,
                "category": category,
                "turns": [turn.prompt for turn in turns],
                "rubric": [turn.checks for turn in turns],
            }
        )
    return items


SUITES: dict[str, Callable[[random.Random], list[Item]]] = {"gsm8k": gsm8k, "ifeval": ifeval, "mt_bench": mt_bench}
