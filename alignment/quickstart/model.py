"""The micro Llama: a real checkpoint folder with random weights, made from a seed in a second."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alignment.quickstart.vocabulary import micro_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast

MAX_LENGTH = 256
"""Tokens of context; the longest generated conversation takes less than half of it."""
LAYERS, HIDDEN, HEADS, INTERMEDIATE = 3, 96, 4, 256


def micro_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Three Llama layers over the tokenizer's vocabulary, with tied embeddings."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_micro_model(out: Path, seed: int) -> None:
    """Writes the untrained checkpoint (config, float32 safetensors, tokenizer with chat template) into `out`.

    The weights depend on the seed alone; the caller's random state is left as it was.
    """
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = micro_tokenizer(MAX_LENGTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(micro_config(tokenizer)).to(torch.float32)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
