"""A checkpoint folder's small files: its configuration and the names its tokenizer goes by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignment.errors import BadInput

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    CHAT_TEMPLATE_FILE,
)
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json as plain data; raises `BadInput` when it is missing or not a JSON object."""
    path = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput("no config.json: not a checkpoint folder", file=str(folder)) from None
    except ValueError as error:
        raise BadInput(f"not JSON: {error}", file=str(path)) from error
    if not isinstance(config, dict):
        raise BadInput("a model configuration is a JSON object", file=str(path))
    return config


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a configuration: nested in multimodal ones, else the whole."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def max_positions(folder: str | Path) -> int | None:
    """The longest sequence the model was made for, or None where its configuration sets no bound."""
    config = text_config(read_config(folder))
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        if isinstance(config.get(name), int):
            return int(config[name])
    return None


def has_chat_template(folder: str | Path) -> bool:
    """Whether the folder's tokenizer carries a chat template, in a file of its own or in its configuration."""
    folder = Path(folder)
    if (folder / CHAT_TEMPLATE_FILE).is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))
