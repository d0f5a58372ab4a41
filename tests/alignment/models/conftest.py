"""Tiny checkpoint folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as Decoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Makes a random Llama with a byte tokenizer under `tmp_path / name`."""

    def make(name: str = "model", seed: int = 0, dtype: torch.dtype = torch.float32, **saving: Any) -> Path:
        folder = tmp_path / name
        vocabulary = {text: index for index, text in enumerate(["<s>", "</s>", *sorted(ByteLevel.alphabet())])}
        bytes_ = Tokenizer(BPE(vocab=vocabulary, merges=[]))
        bytes_.pre_tokenizer, bytes_.decoder = ByteLevel(add_prefix_space=False), Decoder()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_, bos_token="<s>", eos_token="</s>")
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
        )
        LlamaForCausalLM(config).to(dtype).save_pretrained(folder, **saving)
        tokenizer.save_pretrained(folder)
        return folder

    return make
