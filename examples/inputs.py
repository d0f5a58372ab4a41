"""Writes what the examples start from, for who has no model and no data at hand: `python ../inputs.py model pairs`.

model: a folder with the embedded micro model, untrained · pairs: pairs.jsonl · days: pairs/day-1.jsonl and
later/day-2.jsonl · thumbs: thumbs.jsonl · conversations: conversations.jsonl · questions: questions.jsonl (IFEval's
form). All of it is made from a seed, and says nothing about a real model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from alignment.quickstart import build_model, preference_records, sft_records, suite_items

SEED = 0
PAIRS, CONVERSATIONS, QUESTIONS = 240, 1600, 40


def pairs(shard: int) -> list[dict[str, Any]]:
    """Pairs in messages form: prompt, chosen, rejected."""
    return preference_records(shard, SEED)[:PAIRS]


def thumbs() -> Iterable[dict[str, Any]]:
    """The same replies one by one, as people rate them: prompt, completion, label."""
    for number, pair in enumerate(pairs(0)):
        side = "chosen" if number % 2 == 0 else "rejected"
        yield {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}


def write(path: str, records: Iterable[dict[str, Any]]) -> None:
    """Writes JSON lines."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    print(path)


def days() -> None:
    """Today's pairs, and those that arrive tomorrow."""
    write("pairs/day-1.jsonl", pairs(0))
    write("later/day-2.jsonl", pairs(1))


MAKERS: dict[str, Callable[[], None]] = {
    "model": lambda: build_model(Path("model"), SEED),
    "pairs": lambda: write("pairs.jsonl", pairs(0)),
    "days": days,
    "thumbs": lambda: write("thumbs.jsonl", thumbs()),
    "conversations": lambda: write("conversations.jsonl", islice(sft_records(SEED), CONVERSATIONS)),
    "questions": lambda: write("questions.jsonl", suite_items("ifeval", SEED)[:QUESTIONS]),
}

disable_progress_bar()
for name in sys.argv[1:]:
    MAKERS[name]()
