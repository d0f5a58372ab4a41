"""What it costs to make rows into ids: our batches against the tokenizer's library alone, and against a row at a time.

    python -m benchmarks.tokenising --model MODEL --pairs FILE [--rows N]

The library alone is one `encode_batch` over the very texts that our batches encode, each once. All are run in turn, and
of each the median of the rounds is printed, in CPU milliseconds a row. A tokenizer without a chat template gets ChatML,
and plain text that holds HH-RLHF's turns becomes messages, so that templates are measured too.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from alignment.data.forms.table import normalise
from alignment.data.readers import read_records
from alignment.data.rows import Content, PreferenceRow, paired_row
from alignment.data.tokens import ROWS_TOGETHER, Dropped, Tokenization
from alignment.models.checkpoint import load_tokenizer
from alignment.models.ends import end_ids
from alignment.recipe import TokenPolicy

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
LONGEST = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder with a tokenizer and config.json")
    parser.add_argument("--pairs", required=True, help="file of pairs, in any form that `align prefs check` takes")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.model)
    tokenizer.chat_template = tokenizer.chat_template or CHATML
    rows = list(islice(filter(None, map(pair_of, read_records(options.pairs))), options.rows))
    tokenization = Tokenization(tokenizer, TokenPolicy(max_length=LONGEST), end_ids=end_ids(options.model))
    texts = encoded_texts(tokenization, rows)
    library: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    ways: dict[str, Callable[[], Any]] = {
        "the library alone": lambda: [library.encode_batch(batch, add_special_tokens=False) for batch in texts],
        "ours, batched": lambda: batched(tokenization, rows),
        "ours, a row at a time": lambda: [tokenization.pair(row) for row in rows],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            began = time.process_time()
            way()
            seconds[name].append(time.process_time() - began)
    count = sum(map(len, texts))
    characters = sum(len(text) for batch in texts for text in batch)
    dropped = sum(isinstance(one, Dropped) for one in batched(tokenization, rows))
    print(f"{len(rows)} rows ({dropped} dropped), {count} texts, each encoded once, {characters} characters")
    alone = statistics.median(seconds["the library alone"])
    for name, took in seconds.items():
        middle = statistics.median(took)
        print(f"| {name} | {1e3 * middle / len(rows):.3f} | {middle / alone:.2f}× |")


def batched(tokenization: Tokenization, rows: list[PreferenceRow]) -> list[Any]:
    """Every row's sequences, `ROWS_TOGETHER` rows at a time."""
    starts = range(0, len(rows), ROWS_TOGETHER)
    return [one for start in starts for one in tokenization.pairs(rows[start : start + ROWS_TOGETHER])]


def encoded_texts(tokenization: Tokenization, rows: list[PreferenceRow]) -> list[list[str]]:
    """The texts that `batched` has encoded, batch by batch; raises where one is encoded twice in its batch."""
    seen: list[list[str]] = []
    encode = tokenization._encoded

    def watched(texts: list[str], **how: Any) -> list[list[int]]:
        seen.append(texts)
        return encode(texts, **how)

    tokenization._encoded = watched  # type: ignore[method-assign]
    batched(tokenization, rows)
    tokenization._encoded = encode  # type: ignore[method-assign]
    if any(len(set(batch)) < len(batch) for batch in seen):
        raise RuntimeError("a text is encoded twice")
    return seen


def pair_of(record: Any) -> PreferenceRow | None:
    """The pair of a record as a conversation, None where it is none."""
    row = normalise(record.value, "pairs", record.source_row)
    if not isinstance(row, PreferenceRow) or row.chosen is None or row.rejected is None:
        return None
    if not isinstance(row.prompt, str):
        return row
    asked = _messages(row.prompt)
    sides = (({"role": "assistant", "content": str(side).strip()},) for side in (row.chosen, row.rejected))
    chosen, rejected = sides
    return paired_row(asked, chosen, rejected, "pairs", record.source_row)


def _messages(prompt: str) -> Content:
    parts = TURN.split(prompt)
    if len(parts) < 3:
        return ({"role": "user", "content": prompt},)
    turns = list(zip(parts[1::2], parts[2::2], strict=True))
    if turns[-1][0] == "Assistant":  # the opening of the completion
        turns.pop()
    return tuple({"role": ROLES[speaker], "content": text.strip()} for speaker, text in turns)


if __name__ == "__main__":
    main()
