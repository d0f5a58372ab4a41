"""Reads a recipe from YAML with the preset it extends, fills in environment variables, and reports the first error by
file and key."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from alignment.errors import BadInput, did_you_mean, no_such
from alignment.methods import METHOD, METHODS
from alignment.recipe.faults import fault
from alignment.recipe.recipe import Recipe

# A key that appears twice is refused: YAML would keep one of the two values and lose the other.


class StrictLoader(yaml.SafeLoader):
    """The safe loader, but a key that appears twice in a mapping is an error. A key may override a merged key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node; raises `MarkedYAMLError` at the second of two equal keys."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' appears twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; raises `MarkedYAMLError` for a number or date that there is none of."""
        try:
            return super().construct_object(node, deep=deep)  # type: ignore[no-untyped-call]
        except (ValueError, OverflowError) as error:
            kind = {"int": "number", "float": "number", "timestamp": "date"}.get(node.tag.rpartition(":")[2], "value")
            problem = f"no {kind} is written as '{str(node.value)[:40]}'; put a text in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error


MAX_NODES = 100_000
"""Most keys and values of a file with its aliases expanded; a text counts once per 100 characters. A usual recipe has
about a hundred."""
MAX_LEVELS = 50
TOO_DEEP = f"nested too deeply: more than {MAX_LEVELS} levels"


def expanded_size(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many nodes and levels a YAML value has with its aliases expanded, counted without expanding them.

    `known` holds the counts of nodes by `id`; (0, 0) marks a node that is being counted. Raises `MarkedYAMLError` for
    a value that contains itself or is larger than the limits: a few aliases of aliases can mean billions of nodes.
    """
    if id(node) in known:
        size = known[id(node)]
        if size == (0, 0):
            raise yaml.MarkedYAMLError(
                problem="nested too deeply: an anchor contains itself", problem_mark=node.start_mark
            )
        return size
    known[id(node)] = (0, 0)
    if isinstance(node, yaml.ScalarNode) and any("\ud800" <= character <= "\udfff" for character in node.value):
        problem = "half of a surrogate pair, which is not a character"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    inner, own = (node.value, 1) if isinstance(node, yaml.CollectionNode) else ((), 1 + len(node.value) // 100)
    children = [child for item in inner for child in (item if isinstance(item, tuple) else (item,))]
    counted = [expanded_size(child, known) for child in children]
    nodes, levels = own + sum(count for count, _ in counted), 1 + max((level for _, level in counted), default=0)
    if nodes > MAX_NODES:
        problem = f"more than {MAX_NODES:,} keys and values with its aliases expanded"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    if levels > MAX_LEVELS:
        raise yaml.MarkedYAMLError(problem=TOO_DEEP, problem_mark=node.start_mark)
    known[id(node)] = (nodes, levels)
    return nodes, levels


def yaml_value(text: str) -> Any:
    """The value of a YAML text; raises `yaml.YAMLError`, also for what is nested too deeply or expands too far."""
    loader = StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        expanded_size(node, {})  # before construction, which expands merged mappings
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem=TOO_DEEP) from None
    finally:
        loader.dispose()


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file; raises `BadInput` naming the file, and the row where there is one."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(no_such(what, path), file=str(path)) from None
    except IsADirectoryError:
        raise BadInput(f"is a folder, not a {what}", file=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot be read: {error}", file=str(path)) from error
    return parse_yaml(text, str(path), what)


def parse_yaml(text: str, file: str, what: str) -> dict[str, Any]:
    """The mapping in the text of a YAML file, which errors name."""
    try:
        data = yaml_value(text)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error) or "not YAML"
        row = None if mark is None else mark.line + 1
        raise BadInput(f"malformed YAML: {problem}", file=file, row=row) from error
    if not isinstance(data, dict):
        raise BadInput(f"a {what} is a mapping of keys to values", file=file)
    return data


# A recipe that extends a preset is the preset's text with the recipe's own keys over it.

EXTENDS = "extends"
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
"""The shipped recipes, with the presets among them."""
OF_ITS_OWN = frozenset({"name", "description"})
"""Keys of a preset that no recipe takes over."""
PLACES = frozenset({"hub", "path", "files", "embedded", "sources", "adopt", "dataset"})
"""Keys that say where a model or data is; a section with one of these replaces the preset's."""


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe in a file as plain data, over the preset that it extends, if it names one.

    Raises `BadInput` for a file that is none, and for a preset that is not there or extends itself.
    """
    return extended(read_yaml(path, "recipe"), path)


def extended(data: dict[str, Any], path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The plain data of the recipe in a file, over the preset that it extends; `seen` are files that extend this
    one."""
    if EXTENDS not in data:
        return data
    own = {key: value for key, value in data.items() if key != EXTENDS}
    preset = preset_file(data[EXTENDS], path)
    seen = (*seen, path.resolve())
    if preset.resolve() in seen:
        raise BadInput(f"{preset.name} extends itself", file=str(path), field=EXTENDS)
    below = extended(read_yaml(preset, "preset"), preset, seen)
    below = {key: value for key, value in below.items() if key not in OF_ITS_OWN}
    return merged(_for_another_method(below, own), own)


def _for_another_method(below: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A preset without those settings of its method that the recipe's own method refuses: nobody could unset them."""
    section, over = below.get(METHOD.section), own.get(METHOD.section)
    name = over.get(METHOD.key) if isinstance(over, dict) else None
    if not isinstance(section, dict) or name not in METHOD.names:
        return below
    refused = {setting for method in METHODS.values() for setting in method.settings()} | {"length_normalised"}
    refused -= METHOD.settings(name)
    return below | {METHOD.section: {key: value for key, value in section.items() if key not in refused}}


def preset_file(named: Any, path: Path) -> Path:
    """The file that a recipe's `extends` names: from the recipe's folder, or else among the shipped recipes."""
    if not isinstance(named, str):
        raise BadInput("must be the name of a preset, such as presets/zephyr_7b", file=str(path), field=EXTENDS)
    for folder in (path.resolve().parent, RECIPES):
        for suffix in ("", ".yaml"):
            with contextlib.suppress(OSError):  # a name that is longer than a file's
                if (found := folder / f"{named}{suffix}").is_file():
                    return found
    known = sorted(one.stem for one in (RECIPES / "presets").glob("*.yaml"))
    meant = did_you_mean(Path(named).stem, known).replace("mean ", "mean presets/")
    meant = meant or f"; there are presets/ {', '.join(known)}"
    raise BadInput(f"there is no '{named}'{meant}", file=str(path), field=EXTENDS)


def merged(below: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Two mappings as one: sections are merged key by key, and anything else of the second takes the first's place."""
    result = dict(below)
    for key, value in over.items():
        known = below.get(key)
        both = isinstance(known, dict) and isinstance(value, dict) and not PLACES & value.keys()
        result[key] = merged(known, value) if both and isinstance(known, dict) else value
    return result


VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


def load_recipe(path: str | Path, environ: Mapping[str, str] | None = None) -> Recipe:
    """The recipe in a file. `${NAME}` and `${NAME:-default}` in strings are replaced from `environ`.

    Raises `BadInput` that names the file and the field of the first error.
    """
    path = Path(path)
    data = read_recipe(path)
    recipe = parse_recipe(data, str(path), os.environ if environ is None else environ)
    recipe.__dict__["file"] = path.resolve()
    return recipe


def parse_recipe(data: dict[str, Any], file: str, environ: Mapping[str, str]) -> Recipe:
    """The recipe in plain data; `file` is named in errors."""
    try:
        recipe = Recipe.model_validate(_expand(data, environ, file, ""))
        recipe._written = data
        return recipe
    except RecursionError as error:
        raise BadInput("nested too deeply", file=file) from error
    except ValidationError as error:
        field, told = fault(error, Recipe)
        raise BadInput(told, file=file, field=field) from error


def _expand(value: Any, environ: Mapping[str, str], file: str, field: str) -> Any:
    if isinstance(value, dict):
        return {
            key: _expand(item, environ, file, f"{field}.{key}" if field else str(key)) for key, item in value.items()
        }
    if isinstance(value, list):
        return [_expand(item, environ, file, f"{field}.{index}") for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        replacement = environ.get(match["name"], match["default"])
        if replacement is None:
            raise BadInput(f"environment variable {match['name']} is not set", file=file, field=field)
        return replacement

    return VARIABLE.sub(replace, value)
