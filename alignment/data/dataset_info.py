"""LLaMA-Factory's dataset_info.json: which files of a local folder are preferences, and what their columns mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from alignment.errors import BadInput
from alignment.recipe.data import Column, Reading

INFO = "dataset_info.json"
Wanted = Literal["all", "preferences", "demonstrations"]
"""Which files of a folder are meant, where it says what each holds."""
COLUMNS: dict[str, tuple[Column, frozenset[str]]] = {
    "prompt": ("instruction", frozenset({"instruction"})),
    "query": ("input", frozenset({"input"})),
    "response": ("completion", frozenset({"completion", "output"})),
    "history": ("history", frozenset({"history"})),
    "messages": ("messages", frozenset({"messages", "conversations"})),
    "system": ("system", frozenset({"system"})),
    "tools": ("tools", frozenset({"tools"})),
    "chosen": ("chosen", frozenset({"chosen"})),
    "rejected": ("rejected", frozenset({"rejected"})),
    "kto_tag": ("label", frozenset({"label", "kto_tag"})),
}
"""Its names of columns → ours, and the names under which the forms read them without a mapping."""
TAGS = {"role_tag": ("role", "from"), "content_tag": ("content", "value")}


def described(folder: str, files: list[str], wanted: Wanted) -> list[str]:
    """Those of a local folder's files that its dataset_info.json calls preferences, or the others; all of them where
    there are no such ones."""
    preferences = {
        entry.get("file_name")
        for entry in _entries(folder).values()
        if entry.get("ranking") or "kto_tag" in (entry.get("columns") or {})
    }
    return [file for file in files if (file.rsplit("/", 1)[-1] in preferences) == (wanted == "preferences")] or files


def _entries(folder: str) -> dict[str, dict[str, Any]]:
    """What a local folder's dataset_info.json says of its files; nothing where there is none of LLaMA-Factory's.

    Raises `BadInput` for a file that cannot be read: without it other files would be taken for preferences.
    """
    path = Path(folder) / INFO
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"not readable as JSON: {error}; mend it or move it elsewhere", file=str(path)) from error
    entries = value.items() if isinstance(value, dict) else ()  # `datasets` writes a file of this name too
    found = {str(name): entry for name, entry in entries if isinstance(entry, dict) and "file_name" in entry}
    for name, entry in found.items():
        for key, kind in (("file_name", str), ("columns", dict | None), ("tags", dict | None)):
            if not isinstance(entry.get(key), kind):
                told = "must be a text" if kind is str else "must be a mapping of names to names"
                raise BadInput(told, file=str(path), field=f"{name}.{key}")
    return found


def reading_of(url: str, reading: Reading) -> Reading:
    """How a file is read: as the recipe says or, where it names no columns, as a dataset_info.json beside a local file
    does.

    Raises `BadInput` where that file names messages' fields otherwise than any form has them.
    """
    if reading.columns or "://" in url or not Path(url).with_name(INFO).is_file():
        return reading
    path = Path(url).absolute()
    for name, entry in _entries(str(path.parent)).items():
        if entry["file_name"] != path.name:
            continue
        for tag, known in TAGS.items():
            if (given := (entry.get("tags") or {}).get(tag, known[0])) not in known:
                raise BadInput(
                    f"calls a message's field {given!r}; {' or '.join(known)} is read",
                    file=str(path.with_name(INFO)),
                    field=f"{name}.tags.{tag}",
                )
        columns = {what: column for what, column in (entry.get("columns") or {}).items() if what in COLUMNS and column}
        if all(column in COLUMNS[what][1] for what, column in columns.items()):
            return reading
        return reading.model_copy(update={"columns": {COLUMNS[what][0]: str(col) for what, col in columns.items()}})
    return reading
