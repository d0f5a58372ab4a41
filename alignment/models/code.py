"""Code that comes with a model: none of it runs, unless the recipe says `run_code_of_model: true` for that model.

A model folder can bring Python files, which `auto_map` in its configuration or its tokenizer's names, and its
configuration can name kernels: compiled code that Transformers fetches from a hub when the model is loaded. Kernels
are always refused, because they are pinned by nobody.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.digest import file_sha256
from alignment.errors import BadInput

# Transformers replaces layers by kernels of a hub where the package `kernels` is installed, without being asked.
# It reads this once, when it is first imported, which in every process comes after this file.
os.environ["USE_HUB_KERNELS"] = "0"

CODE_FILES = "*.py"
PERMISSION = "run_code_of_model"
"""The recipe's key, beside `hub` or `path`."""
RUNS_CODE = "runs_code"
"""In the summary of every checkpoint whose code may run: {file: SHA-256}. Absent where none may."""
DESCRIPTIONS = ("config.json", "tokenizer_config.json")
KERNEL_SWITCHES = ("use_kernels", "kernel_config")
IMPLEMENTATIONS = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
)


def loading(runs_code: bool) -> dict[str, bool]:
    """The arguments of every `from_pretrained` and `from_config`: without them Transformers asks at a terminal."""
    return {"trust_remote_code": runs_code, "local_files_only": True}


def code_digests(folder: Path) -> dict[str, str]:
    """Every Python file of a folder, by name, with its SHA-256."""
    return {path.name: file_sha256(path)[0] for path in sorted(folder.glob(CODE_FILES))}


def record_of_code(folder: Path, runs_code: bool) -> dict[str, dict[str, str]]:
    """What a checkpoint's summary says of its code: nothing, unless that may run."""
    return {RUNS_CODE: code_digests(folder)} if runs_code else {}


def refusal(folder: Path) -> BadInput | None:
    """The error of a folder whose classes are in code of its own; None where it names no such class."""
    named = next(_classes(folder), None)
    if named is None:
        return None
    file, reference = named
    return BadInput(
        f"needs code of its own ({reference}), and no code of a model is run; if you have read it and trust it,"
        f" say {PERMISSION}: true beside the model in the recipe",
        file=str(folder / file),
        field="auto_map",
    )


def refuse_code(folder: Path) -> None:
    """Raises `BadInput` for a model of an architecture that only its own code has."""
    refused = refusal(folder)
    if refused is None:
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if _read(folder / DESCRIPTIONS[0]).get("model_type") not in CONFIG_MAPPING_NAMES:
        raise refused


def require_own_code(folder: Path) -> None:
    """Raises `BadInput` where the code that may run is not all in the folder, where it is pinned and recorded."""
    for file, reference in _classes(folder):
        repository, _, name = reference.rpartition("--")
        module = f"{name.split('.')[0]}.py"
        if repository:
            raise BadInput(
                f"names code of another repository ({reference}), which is not pinned with the model; copy {module}"
                " into the model's folder and name it there",
                file=str(folder / file),
                field="auto_map",
            )
        if not (folder / module).is_file():
            raise BadInput(f"names {reference}, and {module} is not there", file=str(folder / file), field="auto_map")


def refuse_kernels(config: dict[str, Any], file: str) -> None:
    """Raises `BadInput` where a configuration (`config` is what `file` holds) asks for kernels from a hub."""
    for name, value in _entries(config):
        asked = bool(value) if name in KERNEL_SWITCHES else name in IMPLEMENTATIONS and _names_repository(value)
        if asked:
            raise BadInput(
                f"asks for kernels from a hub ({value}), which are code that nobody pinned and are never run;"
                " remove the field",
                file=file,
                field=name,
            )


def without_implementations(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without a choice of attention or experts: none of them changes its weights' shapes."""
    return {
        name: without_implementations(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in IMPLEMENTATIONS
    }


def _classes(folder: Path) -> Iterator[tuple[str, str]]:
    """(file, `module.Class` or `repository--module.Class`) of every class that a folder's `auto_map`s name."""
    for file in DESCRIPTIONS:
        for reference in _flat(_read(folder / file).get("auto_map")):
            yield file, reference


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none: whoever needs the file says what is wrong with it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _flat(item)


def _entries(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every name and value, those of nested configurations too."""
    for name, value in config.items():
        yield name, value
        if isinstance(value, dict):
            yield from _entries(value)


def _names_repository(value: Any) -> bool:
    """Whether an implementation (or one a part of the model, in a mapping) is `owner/repository`, not a known name."""
    return any("/" in name for name in _flat(value))
