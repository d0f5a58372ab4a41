"""Small files in the forms that benchmarks are published in, made up here."""

from __future__ import annotations

import random
from typing import Any

Record = dict[str, Any]
ANIMALS = ("cat", "dog", "bear", "fox", "deer", "hen", "frog", "owl")
PLACES = ("barn", "hut", "lake", "tree", "garden", "river")


def mmlu(count: int, seed: int = 0, subjects: tuple[str, ...] = ("anatomy", "virology", "marketing")) -> list[Record]:
    rng = random.Random(seed)
    return [
        {
            "question": f"Where does the {rng.choice(ANIMALS)} sleep? ",
            "subject": subjects[index % len(subjects)],
            "choices": rng.sample(PLACES, 4),
            "answer": rng.randrange(4),
        }
        for index in range(count)
    ]


def arc(count: int, seed: int = 0) -> list[Record]:
    rng = random.Random(seed)
    records = []
    for index in range(count):
        labels = list("ABCD") if index % 3 else list("1234")
        choices = {"text": [f"the {place} by the {rng.choice(PLACES)}" for place in rng.sample(PLACES, 4)]}
        records.append(
            {
                "id": f"Made_{index}",
                "question": f"Where is the {rng.choice(ANIMALS)}?",
                "choices": choices | {"label": labels},
                "answerKey": rng.choice(labels),
            }
        )
    return records


def truthfulqa(count: int, seed: int = 0) -> list[Record]:
    rng = random.Random(seed)
    records = []
    for _ in range(count):
        said = [f"A {rng.choice(ANIMALS)} lives in the {place}." for place in rng.sample(PLACES, 5)]
        true = rng.randint(1, 4)
        records.append(
            {
                "question": f"Where does a {rng.choice(ANIMALS)} live?",
                "mc1_targets": {"choices": said[:4], "labels": [1, 0, 0, 0]},
                "mc2_targets": {"choices": said, "labels": [1] * true + [0] * (5 - true)},
            }
        )
    return records


def math(count: int, seed: int = 0) -> list[Record]:
    rng = random.Random(seed)
    kinds = ("Algebra", "Counting & Probability", "Number Theory", "Precalculus")
    records = []
    for index in range(count):
        one, other = rng.randrange(2, 9), rng.randrange(2, 9)
        records.append(
            {
                "problem": f"What is ${one} \\cdot {other}$?",
                "level": "Level 1",
                "type": kinds[index % len(kinds)],
                "solution": f"We have ${one} \\cdot {other} = \\boxed{{{one * other}}}$.",
            }
        )
    return records


def winogrande(count: int, seed: int = 0) -> list[Record]:
    rng = random.Random(seed)
    return [
        {
            "sentence": f"The {first} saw the {second} because _ was near the {rng.choice(PLACES)}.",
            "option1": f"the {first}",
            "option2": f"the {second}",
            "answer": rng.choice("12"),
        }
        for first, second in (rng.sample(ANIMALS, 2) for _ in range(count))
    ]


def hellaswag(count: int, seed: int = 0) -> list[Record]:
    rng = random.Random(seed)
    return [
        {
            "ind": index,
            "activity_label": "Walking",
            "ctx_a": f"A {rng.choice(ANIMALS)} walks.",
            "ctx_b": "then it",
            "endings": [f"sits by the {place}." for place in rng.sample(PLACES, 4)],
            "label": str(rng.randrange(4)),
        }
        for index in range(count)
    ]


def gpqa(count: int, seed: int = 0) -> list[Record]:
    rng = random.Random(seed)
    names = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    return [
        {"Question": f"Where is the {rng.choice(ANIMALS)}?", **dict(zip(names, rng.sample(PLACES, 4), strict=True))}
        for _ in range(count)
    ]
