"""What ends an answer: the ids that tokenizer, configuration and generation settings name; no tokenizer is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def end_ids(folder: str | Path) -> list[int]:
    """Every id that ends an answer of a checkpoint, the tokenizer's EOS first: those that answers stop at."""
    folder = Path(folder)
    config = _json_object(folder / "config.json")
    nested = config.get("text_config")
    found = eos_of_tokenizer(folder)
    for source in (_generation_settings(folder), config, nested if isinstance(nested, dict) else {}):
        found += _token_ids(source.get("eos_token_id"))
    return list(dict.fromkeys(found))


def stop_strings(folder: str | Path) -> list[str]:
    """Texts that end an answer by the generation settings."""
    found = _generation_settings(Path(folder)).get("stop_strings")
    return [text for text in (found if isinstance(found, list) else [found]) if isinstance(text, str)]


def eos_of_tokenizer(folder: str | Path) -> list[int]:
    """The id of the tokenizer's EOS; none where its files name no EOS, or give the name no id."""
    folder = Path(folder)
    about = _json_object(folder / "tokenizer_config.json")
    named = _text(about.get("eos_token")) or _text(_json_object(folder / "special_tokens_map.json").get("eos_token"))
    if named is None:
        return []
    for number, token in _items(about.get("added_tokens_decoder")):
        if _text(token) == named and number.isdecimal():
            return [int(number)]
    whole = _json_object(folder / "tokenizer.json")
    for token in whole.get("added_tokens") or []:
        if _text(token) == named:
            return _token_ids(token.get("id"))
    model = whole.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    for words in (vocabulary, _json_object(folder / "added_tokens.json"), _json_object(folder / "vocab.json")):
        if isinstance(words, dict) and named in words:
            return _token_ids(words[named])
    if isinstance(vocabulary, list):  # of a unigram model: [text, score] in the order of ids
        return [number for number, word in enumerate(vocabulary) if isinstance(word, list) and word[:1] == [named]][:1]
    return []


def _generation_settings(folder: Path) -> dict[str, Any]:
    return _json_object(folder / "generation_config.json")


def _text(token: Any) -> str | None:
    """A token's text, which is written alone or beside how it is split."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _token_ids(value: Any) -> list[int]:
    """One id, several or none, as configurations write them."""
    values = value if isinstance(value, list) else [value]
    return [token for token in values if isinstance(token, int) and not isinstance(token, bool)]


def _json_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; an empty one where there is none: whoever loads the file says what is wrong with it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
