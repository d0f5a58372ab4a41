"""Following a source: whose shards a recipe's name stands for, and dropping those that the source has no more."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path

import dagster as dg
from dagster._core.storage.runs import SqliteRunStorage
from pydantic import BaseModel, ConfigDict, ValidationError

from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.recipe import Recipe
from alignment.recipe.load import read_yaml
from alignment.store import Store
from assets.building.factory import asset_key, shards_definition

# Two recipes of one name in one store would leave out each other's shards, each as its own source lacks them.

OWNERS = "owners"
TUNING = ("settle_seconds", "watch_seconds")
"""What a recipe says of its preferences that changes no shard."""


class NameTaken(BadInput):
    """Another recipe file makes the shards of a recipe of this name."""


class Owner(BaseModel):
    """`owners/<recipe>.json`: the recipe file whose sources were followed last, its host, and a digest of the sources
    as they are written in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    host: str
    sources: str


def claim(store: Store, recipe: Recipe) -> None:
    """Notes that this file's sources are followed under the recipe's name.

    The same file may change its sources; another one follows the same ones (a second checkout), or takes the place of
    one that is gone (a folder that was moved). Raises `NameTaken` for any other, before its first shard.
    """
    if recipe.file is None:
        return
    mine, path = _owner(recipe), store.path(OWNERS, f"{recipe.name}.json")
    try:
        known = Owner.model_validate_json(store.fs.cat_file(path))
    except (FileNotFoundError, ValidationError):
        known = None
    if known == mine:
        return
    if known is not None and _is_another(known, mine, recipe):
        raise NameTaken(
            f"'{recipe.name}' is the name of {known.file} (on {known.host}) in this store, with other preferences, and "
            f"each would leave out the other's shards: give one of them another name, or another ALIGN_STORE; if this "
            f"file takes the place of that one, remove {path}",
            file=mine.file,
            field="name",
        )
    store.replace(path, mine.model_dump_json(indent=1).encode())


def claim_partitions(instance: dg.DagsterInstance, recipe: Recipe) -> None:
    """The same in Dagster, which two checkouts may share that have stores of their own: it has one list of the shards
    of a recipe's name. Raises `NameTaken` as `claim` does."""
    if recipe.file is None:
        return
    cursors = instance.daemon_cursor_storage
    # a home that was copied, with SQLite in it, is another Dagster, whose list is its own
    key = f"align/owner/{json_digest([recipe.name, _database(instance)])}"
    mine, text = _owner(recipe), cursors.get_cursor_values({key}).get(key)
    known = None if text is None else Owner.model_validate_json(text)
    if known == mine:
        return
    if known is not None and _is_another(known, mine, recipe):
        raise NameTaken(
            f"'{recipe.name}' is the name of {known.file} (on {known.host}) in this Dagster, with other preferences, "
            f"and each would leave out the other's shards: give one of them another name, or another DAGSTER_HOME",
            file=mine.file,
            field="name",
        )
    cursors.set_cursor_values({key: mine.model_dump_json()})


def _database(instance: dg.DagsterInstance) -> str:
    local = isinstance(instance.run_storage, SqliteRunStorage)
    return instance.root_directory if local else "shared"


def _owner(recipe: Recipe) -> Owner:
    written = recipe.written["preferences"]
    if isinstance(written, dict):  # a list of sources has none of them
        written = {name: value for name, value in written.items() if name not in TUNING}
    return Owner(file=str(recipe.file), host=socket.gethostname(), sources=json_digest(written))


def _is_another(known: Owner, mine: Owner, recipe: Recipe) -> bool:
    return mine.sources != known.sources and mine.file != known.file and _is_there(known, recipe)


def owner_file(store: Store, recipe_name: str) -> Path | None:
    """The file of the recipe that was run last under a name on this machine; None where nobody noted one."""
    try:
        owner = Owner.model_validate_json(store.fs.cat_file(store.path(OWNERS, f"{recipe_name}.json")))
    except (FileNotFoundError, ValidationError):
        return None
    return Path(owner.file) if owner.host == socket.gethostname() else None


def _is_there(owner: Owner, recipe: Recipe) -> bool:
    """Whether that file still holds a recipe of this name, as far as can be seen from here."""
    if owner.host != socket.gethostname():
        return True
    try:
        return read_yaml(Path(owner.file), "recipe").get("name") == recipe.name
    except BadInput:
        return False


WITHDRAWN = "withdrawn"
"""The data version of a shard that is gone."""


def drop(instance: dg.DagsterInstance, store: Store, recipe_name: str, shards: Iterable[str]) -> None:
    """Takes shards out of a recipe. Artifacts stay in the store, so a shard that comes back is found, not made.

    Dagster forgets a partition's name, never its history: the last word in it says that the shard is gone,
    so that the same content, come back, counts as new for what is built from it. The ref goes last: killed before,
    the next look finds the shard gone again and repeats all of it.
    """
    partitions = shards_definition(recipe_name).name
    assert partitions is not None
    for shard in shards:
        instance.delete_dynamic_partition(partitions, shard)
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                asset_key(recipe_name, "preference_shard"),
                description="Left out: the source has it no more. Its text stays until `align prefs withdraw --shard`.",
                partition=shard,
                tags={"dagster/data_version": WITHDRAWN},
            )
        )
        store.remove_ref(recipe_name, "preference_shard", shard)
