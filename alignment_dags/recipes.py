"""Which recipes there are, by file and by name, and recipes that are derived from another with a few keys changed.

Dagster shows the recipes that ALIGN_RECIPES names (files, folders or globs, separated like PATH), or recipes/*.yaml. A
derived recipe is a file in the project's home, and commands find it by its name. So they do a recipe elsewhere that has
run.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignment.data.withdrawal import Withdrawn, inherit, read_withdrawn, restored_since
from alignment.errors import BadInput, did_you_mean, did_you_mean_beside, no_such
from alignment.methods import LOSS, METHOD, NORMALISED
from alignment.recipe import Recipe, load_recipe, parse_recipe
from alignment.recipe.load import read_recipe, read_yaml, yaml_value
from alignment.store import Store
from resources.home import PROJECT, align_home
from resources.pools import is_pools_file, pools_file

RECIPES = "ALIGN_RECIPES"


def recipe_files() -> list[Path]:
    """The files of the recipes in use, without files of pools; raises `BadInput` for a place that is not there."""
    for pattern in _patterns():
        if not glob.has_magic(pattern) and not Path(pattern).exists():
            raise BadInput(no_such("file or folder", pattern), file=pattern, field=RECIPES)
    return [path for path in _named_files() if not is_pools_file(path)]


def _patterns() -> list[str]:
    return [pattern for pattern in os.environ.get(RECIPES, "").split(os.pathsep) if pattern]


def _named_files() -> list[Path]:
    """The files that ALIGN_RECIPES names, without the pools file in use."""
    places = [Path(pattern) for pattern in _patterns() or [str(PROJECT / "recipes")]]
    globs = [place / "*.yaml" if place.is_dir() else place for place in places]
    files = {path.resolve() for each in globs for path in each.parent.glob(each.name)}
    return sorted(files - {pools_file().resolve()})


def recipes_in_use() -> dict[Path, Recipe]:
    """File to recipe. Two of one name would be the same assets, two of one model name each other's champion."""
    found: dict[Path, Recipe] = {}
    for path in recipe_files():
        recipe = load_recipe(path)
        for other, known in found.items():
            if known.name == recipe.name:
                raise BadInput(f"'{recipe.name}' is also the name of {other}", file=str(path), field="name")
            if known.model_name == recipe.model_name:
                told = f"'{recipe.model_name}' is also the model of {other}"
                raise BadInput(told, file=str(path), field="registry.model_name")
        found[path] = recipe
    return found


# Recipes by name. Only the key `name` of each file is read, so that tab completion answers at once.


def derived_folder() -> Path:
    """The folder of derived recipes."""
    return align_home() / "recipes"


def remember(path: Path, recipe: Recipe) -> None:
    """Has commands, `align status` and `make ui` find a recipe that has run by its name, wherever its file is."""
    place = path.resolve()
    if place.parent in (PROJECT / "recipes", derived_folder().resolve()):
        return  # these are found as they are
    link = _ran_folder() / f"{recipe.name}.yaml"
    link.parent.mkdir(parents=True, exist_ok=True)
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(place)
    new.replace(link)


def _ran_folder() -> Path:
    return align_home() / "recipes" / "elsewhere"


def _more_files() -> list[Path]:
    """Derived recipes, and recipes elsewhere that have run; not those whose file is gone."""
    elsewhere = (link.resolve() for link in sorted(_ran_folder().glob("*.yaml")) if link.exists())
    return [*sorted(derived_folder().glob("*.yaml")), *elsewhere]


def more_recipes() -> dict[Path, Recipe]:
    """File to recipe of the derived recipes, and of recipes elsewhere that have run. One that is not well-formed any
    more is left out: no command has to do with it before a person names it."""
    found: dict[Path, Recipe] = {}
    for path in _more_files():
        with suppress(BadInput):
            found[path] = load_recipe(path)
    return found


def have_run(store: Store) -> set[str]:
    """Names of the recipes that have made something in this store."""
    return {folder.rstrip("/").rsplit("/", 1)[-1] for folder in store.matching(store.path("refs"), "*")}


def has_schedule(path: Path) -> bool:
    """Whether a recipe's file has nights, read as plain data; False for one that cannot be read."""
    with suppress(BadInput):
        return bool(read_yaml(path, "recipe").get("schedule"))
    return False


def recipe_names() -> dict[str, Path]:
    """Name to file of the recipes in use, of the derived recipes, and of others that have run; a file that is no YAML
    has its own name."""
    names: dict[str, Path] = {}
    for path in [*_named_files(), *_more_files()]:
        try:
            data = read_yaml(path, "recipe")
        except BadInput:  # whoever reads the recipe says what is wrong with it
            data = {"name": path.stem}
        if isinstance(name := data.get("name"), str):  # a pools file has none
            names.setdefault(name, path)
    return names


def is_recipe(name: str) -> bool:
    """Whether a person means a recipe's file."""
    return name.endswith((".yaml", ".yml"))


def recipe_file(given: Path) -> Path:
    """The file of a recipe that a person named by its file or by its name.

    Raises `BadInput` for neither, with the name that was meant.
    """
    if given.is_file() or given.suffix or len(given.parts) != 1:
        if is_recipe(str(given)) and not given.exists() and not did_you_mean_beside(str(given)):
            # no file beside it is alike, but a recipe in use may have the name
            meant = did_you_mean(given.stem, recipe_names())
            raise BadInput(f"no such recipe{meant}", file=str(given))
        return given  # whoever reads it says what is wrong with it
    if given.is_dir() and str(given) not in recipe_names():
        raise BadInput("is a folder, not a recipe", file=str(given))
    names = recipe_names()
    if str(given) not in names:
        known = did_you_mean(str(given), names) or f"; recipes are {', '.join(sorted(names)) or 'none'}"
        raise BadInput(f"no such recipe: no file and no recipe in use has this name{known}", file=str(given))
    return names[str(given)]


# Derived recipes: `align run RECIPE --set dpo.beta=0.5 --as NAME`.

SPELLINGS = {"optimise": "dpo", "dpo": "optimise"}
"""Two spellings of one section: the one that the recipe uses is changed."""


@dataclass(frozen=True)
class Derived:
    """A recipe with another name and a few other keys than `base`: its text, and the file in the project's home that it
    has once it is written. Nothing is written before that."""

    base: str
    recipe: Recipe
    file: Path
    text: str

    def write(self) -> Path:
        """Writes the file, withdraws what was withdrawn from the base, restores what was restored there since, and
        returns the file."""
        from resources.store import ArtifactStore

        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(self.text, encoding="utf-8")
        inherit(ArtifactStore().open(), self.base, self.recipe.name)
        return self.file

    def withdrawn(self, store: Store) -> Withdrawn:
        """What the recipe must not use once it is written."""
        own = read_withdrawn(store, self.recipe.name).without(restored_since(store, self.recipe.name))
        return read_withdrawn(store, self.base).together(own)


def derive(base: Path, changes: Sequence[str], name: str) -> Path:
    """Writes a recipe with another name and a few other keys into the project's home, and returns its file."""
    return derived(base, changes, name).write()


def derived(base: Path, changes: Sequence[str], name: str) -> Derived:
    """A recipe with another name and a few other keys.

    `changes` are `section.key=value`, where the value is read as YAML. The derived recipe has no schedule, registers
    its model under its own name, and has its runs in the experiment of the recipe that it comes from. What
    was withdrawn from that one is withdrawn from it too, in the store, until it is derived after a restoration. Raises
    `BadInput` for changes that make no valid recipe, and for a name that a recipe in use has.
    """
    data = deepcopy(read_recipe(base))
    known = recipe_names().get(name)
    path = derived_folder() / f"{name}.yaml"
    if known is not None and known.resolve() != path.resolve():
        raise BadInput(f"'{name}' is the name of {known}; give another", field="--as")
    data.pop("schedule", None)
    if isinstance(registry := data.setdefault("registry", {}), dict):
        registry.pop("model_name", None)
        registry.setdefault("experiment", data.get("name"))
    for change in changes:
        _change(data, change)
    data["name"] = name
    recipe = parse_recipe(data, f"{base} as {name}", os.environ)
    made = f"align run {base} {' '.join(f'--set {change}' for change in changes)} --as {name}"
    head = f"# Made by `{' '.join(made.split())}`.\n"  # one line, whatever a value holds
    text = head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return Derived(load_recipe(base).name, recipe, path, text)


def _change(data: dict[str, Any], change: str) -> None:
    """Sets one key of a recipe's plain data; sections on the way are made."""
    dotted, equals, text = change.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise BadInput(f"'{change}': expected KEY=VALUE, such as dpo.beta=0.5", field="--set")
    try:
        value = yaml_value(text)
    except yaml.YAMLError as error:
        raise BadInput(f"'{change}': the value is no YAML", field="--set") from error
    if keys[0] not in data and SPELLINGS.get(keys[0]) in data:
        keys, value = _spelled(keys, value, change)
    section: Any = data
    for depth, key in enumerate(keys):
        name, last = ".".join(keys[:depth]), depth == len(keys) - 1
        if isinstance(section, list):
            if not key.isdecimal() or int(key) >= len(section):
                told = f"{name} is a list: name one of 0 to {len(section) - 1}, as in {name}.0, or set it whole"
                raise BadInput(f"'{change}': {told}", field="--set")
            if last:
                section[int(key)] = value
            section = section[int(key)]
        elif not isinstance(section, dict):
            raise BadInput(f"'{change}': {name} is no section", field="--set")
        elif last:
            section[key] = value
        else:
            section = section.setdefault(key, {})


def _spelled(keys: list[str], value: Any, change: str) -> tuple[list[str], Any]:
    """A change of the section that trains as the recipe's other spelling writes it: the key of the method, and its name
    where it has another there. Raises `BadInput` for what means something else there."""
    given, wanted = (METHOD, LOSS) if keys[0] == METHOD.section else (LOSS, METHOD)
    keys = [wanted.section, *keys[1:]]
    if keys[1:] == [given.key]:
        keys[1] = wanted.key
        if isinstance(value, str) and value in given.names and value not in wanted.names:
            value = wanted.elsewhere.get(value, value)
    if keys[1:] == ["length_normalised"] or (keys[1:] == [wanted.key] and value == wanted.elsewhere.get(NORMALISED)):
        told = f"'{change}': the recipe has the section {wanted.section}, which spells margins per token otherwise"
        right = "dpo.loss=sigmoid_norm" if wanted is LOSS else "optimise.method=dpo and optimise.length_normalised=true"
        raise BadInput(f"{told}; set {right}", field="--set")
    return keys, value


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The settings in the plain data of a recipe or a request under dotted names; of named parts, such as sources, each
    has its own, and any other list is one value."""
    if isinstance(value, list) and value and all(isinstance(part, dict) and "name" in part for part in value):
        value = {part["name"]: {key: inner for key, inner in part.items() if key != "name"} for part in value}
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key))
    elif name:
        yield name, value
