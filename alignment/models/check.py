"""What only fails late is checked early: a checkpoint can be loaded, and a model in training can be saved again."""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.errors import BadInput
from alignment.models.checkpoint import (
    GENERATION_CONFIG_FILE,
    TOKEN_IDS,
    first_line,
    load_config,
    load_generation_config,
    load_tokenizer,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def check_loads(folder: Path, runs_code: bool = False) -> None:
    """Raises `BadInput`, naming the file, unless configuration, generation settings and tokenizer can be read."""
    load_config(folder, runs_code)
    load_generation_config(folder)
    load_tokenizer(folder, runs_code)


def make_savable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Makes sure that a loaded model can be saved whenever its training wants to; `folder` is where it came from.

    Transformers refuses to save generation settings that contradict each other (a temperature without `do_sample`, as
    some published models bring). Training needs none of them: all but token ids are dropped from the model in memory,
    and the trained checkpoint gets the file of its start. Raises `BadInput` for whatever else cannot be saved.
    """
    settings = load_generation_config(folder) or getattr(model, "generation_config", None)
    if settings is not None:
        if fields := _contradictory(settings):
            log.warning(
                "%s: %s cannot be saved beside the other settings; training goes without, and its checkpoint gets the"
                " file as it is",
                folder / GENERATION_CONFIG_FILE,
                ", ".join(fields),
            )
        model.generation_config = _ids_only(settings)
    with tempfile.TemporaryDirectory() as scratch:
        part = "the model"
        try:
            model.save_pretrained(scratch, state_dict={})
            part = "the tokenizer"
            tokenizer.save_pretrained(scratch)
        except Exception as error:  # a class may raise anything on a file that it does not like
            told = f"{part} could not be saved after training: {first_line(error)}"
            raise BadInput(told, file=str(folder)) from error


def _ids_only(settings: GenerationConfig) -> GenerationConfig:
    from transformers import GenerationConfig

    ids = {name: getattr(settings, name, None) for name in TOKEN_IDS}
    if isinstance(ids["pad_token_id"], int) and ids["pad_token_id"] < 0:
        ids["pad_token_id"] = None
    return GenerationConfig(**ids)


def _contradictory(settings: GenerationConfig) -> list[str]:
    """The fields that Transformers would refuse to save."""
    try:
        settings.validate(strict=True)
    except ValueError as error:
        return re.findall(r"^- `(\w+)`", str(error), re.MULTILINE)
    return []
