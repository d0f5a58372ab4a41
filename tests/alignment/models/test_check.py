"""What would only fail when a trained model is saved is refused, or mended, before it is trained."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.models.check import check_loads, make_savable
from alignment.models.checkpoint import load_model, load_tokenizer
from alignment.models.pin import pin_model
from alignment.recipe import ModelSource
from alignment.stages import execute
from alignment.stages.base_model import STAGE, BaseModelRequest
from alignment.store import Store

Make = Callable[..., Path]

CONTRADICTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": [1, 2]}, ["temperature", "top_p"]),
    ({"num_beams": 1, "early_stopping": True, "length_penalty": 2.0}, ["early_stopping", "length_penalty"]),
    ({"pad_token_id": -1, "top_k": 7}, ["pad_token_id", "top_k"]),
    ({"output_scores": True}, ["output_scores"]),
]


def with_settings(folder: Path, text: str) -> Path:
    (folder / "generation_config.json").write_text(text)
    return folder


@pytest.mark.parametrize(("settings", "fields"), CONTRADICTIONS)
def test_generation_settings_that_contradict_each_other_are_named_and_keep_nothing_from_being_saved(
    checkpoint: Make,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    fields: list[str],
) -> None:
    folder = with_settings(checkpoint(), json.dumps(settings))
    check_loads(folder)
    model, tokenizer = load_model(folder, "float32"), load_tokenizer(folder)
    with caplog.at_level(logging.WARNING, logger="alignment.models.check"):
        make_savable(model, tokenizer, folder)
    assert f"generation_config.json: {', '.join(fields)} cannot be saved" in caplog.text
    model.generation_config.pad_token_id = 2  # as a trainer does: what was changed is checked when it is saved
    model.save_pretrained(tmp_path / "saved")
    assert model.generation_config.eos_token_id == settings.get("eos_token_id")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"not JSON"),
        ("[1]", r"a JSON object"),
        ('{"max_new_tokens": 0}', r"`max_new_tokens` must be greater than 0"),
        ('{"logits_processor": []}', r"`logits_processor` is not a valid argument"),
        ('{"eos_token_id": "two"}', r"field 'eos_token_id': is a token id"),
        ('{"eos_token_id": [1, null]}', r"field 'eos_token_id': is a token id"),
    ],
)
def test_generation_settings_that_nobody_can_use_are_refused_when_the_model_is_pinned(
    checkpoint: Make, tmp_path: Path, text: str, message: str
) -> None:
    pin = pin_model(ModelSource(path=str(with_settings(checkpoint(), text))))
    with pytest.raises(BadInput, match=rf"generation_config\.json.*{message}") as refused:
        execute(STAGE, BaseModelRequest(pin=pin, seed=0), Store(str(tmp_path / "store")))
    assert "\n" not in str(refused.value)


def test_what_else_cannot_be_saved_is_said_before_training(checkpoint: Make) -> None:
    folder = checkpoint()
    model, tokenizer = load_model(folder, "float32"), load_tokenizer(folder)
    model.config.task_specific_params = {"of": {1, 2}}  # no JSON
    with pytest.raises(BadInput, match=r"the model could not be saved after training: .*not JSON serializable"):
        make_savable(model, tokenizer, folder)


def test_a_configuration_that_its_class_refuses_is_said_in_one_line(checkpoint: Make) -> None:
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 5}))
    with pytest.raises(BadInput, match=r"config\.json: cannot be read: .*not a multiple of the number of attention"):
        load_model(folder, "float32")
