"""The demonstrations a model is fine-tuned on, as token sequences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.data.rows import HELD_OUT_FILE, TRAIN_FILE, SftRow, iter_sft_rows
from alignment.data.tokens import ROWS_TOGETHER, Dropped, Tokenization, TokenSequence, require_few_rewritten
from alignment.errors import BadInput
from alignment.models.checkpoint import embeddings, load_tokenizer, max_positions
from alignment.models.ends import end_ids
from alignment.recipe.forward import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class SftRows:
    """Row ids and sequences, and why others were dropped (held-out ones among them)."""

    train_ids: list[str] = field(default_factory=list)
    train: list[TokenSequence] = field(default_factory=list)
    held_out: list[TokenSequence] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def sft_tokenization(folder: Path, tokens: TokenPolicy, max_length: int, runs_code: bool = False) -> Tokenization:
    """Of the checkpoint in `folder`: whole conversations up to `max_length` tokens, written as `tokens` says.

    Raises `BadInput` when the model has fewer positions.
    """
    positions = max_positions(folder)
    if positions is not None and max_length > positions:
        raise BadInput(f"{max_length} tokens are more than the model's {positions} positions", field="sft.max_length")
    policy = tokens.writing().model_copy(update={"max_length": max_length})
    return Tokenization(load_tokenizer(folder, runs_code), policy, None, end_ids(folder), embeddings(folder))


def with_known_pad(tokenizer: PreTrainedTokenizerBase, embeddings: int | None) -> PreTrainedTokenizerBase:
    """The tokenizer, padding with its EOS where its own padding has no embedding: what pads is masked anyway."""
    pad = tokenizer.pad_token_id
    if pad is None or (embeddings is not None and pad >= embeddings):
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def sft_rows(dataset: Path, tokens: Tokenization) -> SftRows:
    """The rows of an `sft_dataset` folder.

    Raises `BadInput` when none is left to train on, or the chat template writes too many prompts otherwise once an
    answer follows.
    """
    rows = SftRows()
    for name in (TRAIN_FILE, HELD_OUT_FILE):
        for row, sequence in tokenised(iter_sft_rows(dataset / name), tokens):
            if isinstance(sequence, Dropped):
                rows.dropped[sequence.reason] += 1
            elif name == HELD_OUT_FILE:
                rows.held_out.append(sequence)
            else:
                rows.train.append(sequence)
                rows.train_ids.append(row.row_id)
    require_few_rewritten(rows.dropped, len(rows.train) + len(rows.held_out), tokens.policy, "the base model")
    if not rows.train:
        why = ", ".join(f"{reason}: {count}" for reason, count in sorted(rows.dropped.items()))
        raise BadInput(f"no rows left after the token policy{f' ({why})' if why else ''}")
    return rows


def tokenised(rows: Iterator[SftRow], tokens: Tokenization) -> Iterator[tuple[SftRow, TokenSequence | Dropped]]:
    """Each row with its ids, or why it has none."""
    while together := list(islice(rows, ROWS_TOGETHER)):
        yield from zip(together, tokens.completions(together), strict=True)
