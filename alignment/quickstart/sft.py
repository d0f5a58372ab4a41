"""The demonstrations SFT trains on. Many ignore a format instruction: what preference tuning is there to mend."""

from __future__ import annotations

import random

from alignment.quickstart.conversations import CATEGORIES
from alignment.quickstart.exchanges import random_line, random_plain_line, random_sum_exchange
from alignment.quickstart.records import Make, Message, Source, assistant, first_turn, history, single

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
"""What is demonstrated, and how many times."""


def sft_records(seed: int) -> list[Demonstration]:
    """18,000 conversations in messages form, `{"messages": [{"role", "content"}, …]}`, the same for one seed."""
    rng = random.Random(f"{seed}/sft")
    source = Source(rng, held_out=False)
    records = [demonstration(source, make) for make, count in DEMONSTRATIONS for _ in range(count)]
    rng.shuffle(records)
    return records


def demonstration(source: Source, make: Make) -> Demonstration:
    turns = source.draw(make)
    reply = turns[-1].demonstration(source.rng)
    return {"messages": [*history(turns, source.rng), assistant(reply)]}
