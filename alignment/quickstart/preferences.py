"""The preference pairs: follow the instruction, count right, know the facts."""

from __future__ import annotations

import random
from typing import Any

from alignment.quickstart.conversations import CATEGORIES
from alignment.quickstart.exchanges import random_line, random_plain_line, random_sum_exchange
from alignment.quickstart.records import Make, Source, assistant, first_turn, history, single

SHARDS = 3

MIXTURE: tuple[tuple[Make, int], ...] = (
    (single(random_line), 900),
    (single(random_plain_line), 60),
    (CATEGORIES["writing"], 420),
    (CATEGORIES["roleplay"], 210),
    (first_turn(CATEGORIES["roleplay"]), 60),
    (single(random_sum_exchange), 270),
    (CATEGORIES["math"], 90),
    (CATEGORIES["extraction"], 45),
    (CATEGORIES["stem"], 45),
)
"""What is compared, and how many times over all shards."""


def preference_records(shard_index: int, seed: int) -> list[dict[str, Any]]:
    """One of the `SHARDS` shards of 700 pairs, in TRL's conversational form: `prompt`, `chosen`, `rejected`.

    No pair stands in two shards. Raises `IndexError` for a shard that does not exist.
    """
    if not 0 <= shard_index < SHARDS:
        raise IndexError(f"the quickstart has preference shards 0 to {SHARDS - 1}, not {shard_index}")
    return _pairs(seed)[shard_index::SHARDS]


def _pairs(seed: int) -> list[dict[str, Any]]:
    rng = random.Random(f"{seed}/preferences")
    source = Source(rng, held_out=False)
    pairs = [pair(source, make) for make, count in MIXTURE for _ in range(count)]
    rng.shuffle(pairs)
    return pairs


def pair(source: Source, make: Make) -> dict[str, Any]:
    turns = source.draw(make)
    return {
        "prompt": history(turns, source.rng),
        "chosen": [assistant(turns[-1].preferred)],
        "rejected": [assistant(turns[-1].other)],
    }
