"""A GGUF file as a base model: dequantised once, into an ordinary checkpoint of bfloat16 safetensors.

A GGUF file holds weights (often quantised), configuration and tokenizer in one. Transformers reads it with the package
`gguf`, which is not among our dependencies. The pinned file's content is the model's identity; whatever is trained,
scored or measured uses the dequantised checkpoint, so nothing depends on the file any more.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

from alignment.errors import BadInput, no_such
from alignment.models.checkpoint import CONFIG_FILE
from alignment.models.code import loading

SUFFIX = ".gguf"
MAGIC = b"GGUF"


def is_gguf(path: str | Path) -> bool:
    """Whether a path names a GGUF file, there or not."""
    return str(path).lower().endswith(SUFFIX)


def check_gguf(path: Path) -> None:
    """Raises `BadInput` where there is no such file, it is none of GGUF's, or what reads it is not installed."""
    if not path.is_file():
        raise BadInput(no_such("file", path), file=str(path))
    with path.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise BadInput("does not begin as a GGUF file does", file=str(path))
    if importlib.util.find_spec("gguf") is None:
        raise BadInput(
            "a GGUF file is read with the package gguf, which is not installed: pip install gguf", file=str(path)
        )


def gguf_config(path: Path) -> dict[str, Any]:
    """The configuration of the model in a GGUF file, as config.json would have it."""
    from transformers import AutoConfig

    check_gguf(path)
    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, **loading(False))
    except Exception as error:  # of another library, on a file of any architecture
        raise BadInput(f"Transformers cannot read this GGUF file: {_line(error)}", file=str(path)) from error
    return {name: value for name, value in config.to_dict().items() if name != "quantization_config"}


def write_tokenizer(path: Path, out: Path) -> None:
    """Writes the file's configuration and tokenizer into a folder, without weights."""
    from transformers import AutoTokenizer

    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(gguf_config(path), indent=2, default=str) + "\n"
    (out / CONFIG_FILE).write_text(text, encoding="utf-8")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, **loading(False))
    except Exception as error:
        raise BadInput(f"Transformers cannot read this file's tokenizer: {_line(error)}", file=str(path)) from error
    tokenizer.save_pretrained(out)


def dequantise(path: Path, out: Path) -> None:
    """Writes the model in a GGUF file as a complete checkpoint folder."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    check_gguf(path)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, **loading(False)
        )
    except Exception as error:
        raise BadInput(f"Transformers cannot read this GGUF file: {_line(error)}", file=str(path)) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    config = type(loaded.config).from_dict(
        {name: value for name, value in loaded.config.to_dict().items() if name != "quantization_config"}
    )
    model = type(loaded)(config).to(torch.bfloat16)  # a fresh one, which knows nothing of the quantisation
    model.load_state_dict({name: value.to(torch.bfloat16) for name, value in loaded.state_dict().items()})
    model.tie_weights()
    model.save_pretrained(out)
    write_tokenizer_files(path, out)


def write_tokenizer_files(path: Path, out: Path) -> None:
    """Adds the file's tokenizer to a checkpoint folder; its config.json stays."""
    with tempfile.TemporaryDirectory() as scratch:
        write_tokenizer(path, Path(scratch))
        for file in Path(scratch).iterdir():
            if file.name != CONFIG_FILE:
                (out / file.name).write_bytes(file.read_bytes())


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
