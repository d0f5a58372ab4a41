"""Random models of real shapes, and random pairs with the lengths of a usual preference mix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from alignment.data.tokens import TokenSequence

PROMPT_SPREAD, RESPONSE_SPREAD = 0.7, 0.5
"""Log-normal widths: eight pairs a batch in data order compute 1.9 times the tokens there are, and a pair's
prompt shared saves another 1.27."""


@dataclass(frozen=True)
class StepRow:
    """A pair as a step takes it, with its cached reference log-probs (nat)."""

    chosen: TokenSequence
    rejected: TokenSequence
    ref_chosen_logp: float
    ref_rejected_logp: float


@dataclass(frozen=True)
class Size:
    """A model's shape (Llama), and the mean lengths and number of pairs that go through it."""

    config: dict[str, Any]
    dtype: str
    pairs: int
    prompt: int
    response: int
    longest: int
    batch_tokens: int


def _llama(
    hidden: int, inner: int, layers: int, heads: int, key_heads: int, vocab: int, *, tied: bool
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


SIZES = {
    "tiny": Size(_llama(64, 128, 2, 4, 2, 512, tied=True), "float32", 16, 30, 40, 200, 2048),
    "cpu": Size(_llama(384, 1024, 8, 6, 6, 4096, tied=True), "float32", 64, 118, 160, 512, 4096),
    "0.5b": Size(_llama(896, 4864, 24, 14, 2, 151_936, tied=True), "bfloat16", 2048, 236, 320, 2048, 32_768),
    "8b": Size(_llama(4096, 14_336, 32, 32, 8, 128_256, tied=False), "bfloat16", 512, 236, 320, 2048, 16_384),
}


def pairs(size: Size, seed: int = 0) -> list[tuple[TokenSequence, TokenSequence]]:
    """Chosen and rejected with one prompt, in random order of length."""
    draw = np.random.default_rng(seed)

    def lengths(mean: int, spread: float) -> Any:
        drawn = mean * np.exp(draw.normal(-(spread**2) / 2, spread, size.pairs))
        return np.clip(drawn, 4, size.longest).astype(int)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.integers(3, size.config["vocab_size"], count).tolist())

    made = []
    shape = (size.prompt, PROMPT_SPREAD), (size.response, RESPONSE_SPREAD), (size.response, RESPONSE_SPREAD)
    for prompt, chosen, rejected in zip(*(lengths(*each) for each in shape), strict=True):
        shared = ids(prompt)
        made.append((TokenSequence(shared, ids(chosen)), TokenSequence(shared, ids(rejected))))
    return made
