"""Rewrites a recipe's older spelling, `dpo: {loss: …}`, to `optimise: {method: …}` in the text of its file.

Only the words that change are replaced, at the places that the YAML parser gives, so comments, order, quotes, anchors
and line ends stay. The result is loaded and compared with the recipe before it may be written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from alignment.errors import BadInput
from alignment.methods import LOSS, METHOD, NORMALISED
from alignment.recipe.load import StrictLoader, extended, load_recipe, parse_recipe, parse_yaml, read_yaml


class Edit(NamedTuple):
    """The text between two offsets, and what takes its place."""

    start: int
    end: int
    text: str


def upgraded(path: Path, environ: Mapping[str, str] | None = None) -> tuple[str, str]:
    """The text of a recipe's file, and the same recipe in today's spelling; equal texts if nothing is to be rewritten.

    Raises `BadInput` for a file that is no recipe, for a spelling that cannot be rewritten in place, and for a result
    that would train otherwise.
    """
    environ = os.environ if environ is None else environ
    recipe, data = load_recipe(path, environ), read_yaml(path, "recipe")
    text = path.read_bytes().decode("utf-8")  # with its line ends
    if LOSS.section not in data:
        return text, text
    try:
        edits = sorted(_edits(text, data))
    except _NotInPlace as why:
        raise BadInput(f"cannot be rewritten in place: {why}", file=str(path), field=LOSS.section) from None
    new = text
    for edit in reversed(edits):
        new = new[: edit.start] + edit.text + new[edit.end :]
    try:
        result = parse_recipe(extended(parse_yaml(new, str(path), "recipe"), path), str(path), environ)
    except BadInput as error:
        told = f"cannot be rewritten, as the result would be refused: {error.message}"
        raise BadInput(told, file=str(path), field=error.field) from error
    others = {LOSS.section, METHOD.section}
    if result.dpo != recipe.dpo or result.model_dump(exclude=others) != recipe.model_dump(exclude=others):
        told = f"cannot be rewritten: the result would train with {result.dpo.called}, and the recipe has"
        raise BadInput(f"{told} {recipe.dpo.called}", file=str(path), field=LOSS.section)
    return text, new


def write_whole(path: Path, text: str) -> None:
    """Writes a file in one step: a reader sees the old text or the new one. Its permissions stay, and so do links."""
    path = path.resolve()
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(text.encode("utf-8"))
        if path.exists():
            shutil.copymode(path, partial)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise BadInput(f"cannot be written: {error.strerror}", file=str(path)) from error


class _NotInPlace(ValueError):
    """Why the words to be replaced are not where they could be."""


def _edits(text: str, data: dict[str, Any]) -> Iterator[Edit]:
    loader = StrictLoader(text)
    try:
        root = loader.get_single_node()
    finally:
        loader.dispose()
    key, section = _entry(root, LOSS.section, "the section comes")
    yield _renamed(text, key, LOSS.section, METHOD.section)
    if section.start_mark.index < key.end_mark.index:
        raise _NotInPlace("the section is an alias (*) of another; write it out")
    if LOSS.key not in data[LOSS.section]:
        return
    key, name = _entry(section, LOSS.key, f"{LOSS.key} comes")
    yield _renamed(text, key, LOSS.key, METHOD.key)
    old = data[LOSS.section][LOSS.key]
    new = "dpo" if old == NORMALISED else METHOD.elsewhere.get(old, old)
    if new not in METHOD.names:
        raise _NotInPlace(f"{LOSS.key} is {old}; write the method's name")
    if new == old:
        return
    if name.start_mark.index < key.end_mark.index:
        raise _NotInPlace(f"{LOSS.key} is an alias (*); write the method's name")
    yield _renamed(text, name, old, new)
    if old != NORMALISED:
        return
    setting = "length_normalised: true"
    if isinstance(section, yaml.MappingNode) and section.flow_style:
        yield Edit(name.end_mark.index, name.end_mark.index, f", {setting}")
        return
    end = text.find("\n", name.end_mark.index)
    newline = "\r\n" if "\r\n" in text else "\n"
    line = f"{' ' * key.start_mark.column}{setting}"
    yield Edit(len(text), len(text), newline + line) if end < 0 else Edit(end + 1, end + 1, line + newline)


def _entry(mapping: yaml.Node | None, key: str, comes: str) -> tuple[yaml.Node, yaml.Node]:
    """A key of a mapping and its value, where they stand."""
    for name, value in mapping.value if isinstance(mapping, yaml.MappingNode) else ():
        if name.value == key:
            return name, value
    raise _NotInPlace(f"{comes} from a merged mapping (<<); write it out")


def _renamed(text: str, node: yaml.Node, old: str, new: str) -> Edit:
    """A word in the place of another, in the quotes that it has."""
    start, end = node.start_mark.index, node.end_mark.index
    written = text[start:end]
    if written.strip("'\"") != old:
        raise _NotInPlace(f"{old} is written as {written.splitlines()[0]}; write it plainly")
    return Edit(start, end, written.replace(old, new))
