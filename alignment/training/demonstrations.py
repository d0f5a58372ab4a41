"""The demonstrations a model is fine-tuned on, as token sequences."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from alignment.data.rows import iter_sft_rows
from alignment.data.tokens import Dropped, Tokenization, TokenSequence
from alignment.errors import BadInput
from alignment.recipe import TokenPolicy
from alignment.stages.sft_dataset import HELD_OUT_FILE, TRAIN_FILE


@dataclass
class SftRows:
    """Row ids and sequences, and why others were dropped (held-out ones among them)."""

    train_ids: list[str] = field(default_factory=list)
    train: list[TokenSequence] = field(default_factory=list)
    held_out: list[TokenSequence] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def sft_tokenization(tokenizer: object, max_length: int, positions: int | None) -> Tokenization:
    """Whole conversations up to `max_length` tokens; raises `BadInput` when the model has fewer positions."""
    if positions is not None and max_length > positions:
        raise BadInput(f"{max_length} tokens are more than the model's {positions} positions", field="sft.max_length")
    return Tokenization(tokenizer, TokenPolicy(max_length=max_length, truncation="drop"))  # type: ignore[arg-type]


def sft_rows(dataset: Path, tokens: Tokenization) -> SftRows:
    """The rows of an `sft_dataset` folder; raises `BadInput` when none is left to train on."""
    rows = SftRows()
    for name in (TRAIN_FILE, HELD_OUT_FILE):
        for row in iter_sft_rows(dataset / name):
            sequence = tokens.completion(row.form, row.prompt, row.completion)
            if isinstance(sequence, Dropped):
                rows.dropped[sequence.reason] += 1
            elif name == HELD_OUT_FILE:
                rows.held_out.append(sequence)
            else:
                rows.train.append(sequence)
                rows.train_ids.append(row.row_id)
    if not rows.train:
        why = ", ".join(f"{reason}: {count}" for reason, count in sorted(rows.dropped.items()))
        raise BadInput(f"no rows left after the token policy{f' ({why})' if why else ''}")
    return rows
