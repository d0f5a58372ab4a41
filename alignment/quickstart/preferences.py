"""The preference pairs: follow the instruction, count right, know the facts."""

from __future__ import annotations

import random
from typing import Any

from alignment.quickstart.conversations import CATEGORIES
from alignment.quickstart.exchanges import random_line, random_plain_line, random_sum_exchange
from alignment.quickstart.records import Make, Source, assistant, first_turn, history, single

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
"""What a shard compares, and how many times."""


def preference_records(shard_index: int, seed: int) -> list[dict[str, Any]]:
    """A shard of 700 pairs in TRL's conversational form: `prompt`, `chosen`, `rejected`.

    Shards count from 0 without end, like days, and no shard depends on how many there are. Within one, no
    prompt stands twice.
    """
    if shard_index < 0:
        raise ValueError(f"shards count from 0, not {shard_index}")
    rng = random.Random(f"{seed}/preferences/{shard_index}")
    source = Source(rng, held_out=False)
    pairs = [pair(source, make) for make, count in PREFERENCES for _ in range(count)]
    rng.shuffle(pairs)
    return pairs


def pair(source: Source, make: Make) -> dict[str, Any]:
    turns = source.draw(make)
    return {
        "prompt": history(turns, source.rng),
        "chosen": [assistant(turns[-1].preferred)],
        "rejected": [assistant(turns[-1].other)],
    }
