"""Tiny checkpoint folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import byte_tokenizer, write_model

NARROW = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Makes a random Llama with a byte tokenizer under `tmp_path / name`."""

    def make(name: str = "model", seed: int = 0, dtype: str = "float32", **saving: Any) -> Path:
        return write_model(tmp_path / name, byte_tokenizer(), seed=seed, dtype=dtype, saving=saving, **NARROW)

    return make
