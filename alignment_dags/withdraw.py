"""`align prefs withdraw` and `restore`: tombstones for rows and shards of a recipe that are sure to be known."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from alignment.artifacts import Artifact, Store
from alignment.artifacts.listing import refs_of
from alignment.errors import BadInput
from alignment.preferences.shard import ShardRequest
from alignment.preferences.shards import shards_of
from alignment.preferences.tombstones import Tombstone, What, bury, lift, now, read_withdrawn
from alignment.preferences.withdrawal import rows_held
from alignment.recipe import load_recipe
from alignment.stages.execute import REQUEST_FILE
from resources.store import ArtifactStore

SHARD = "preference_shard"


def withdraw(path: Path, rows: list[str], shards: list[str], reason: str) -> dict[str, Any]:
    """Writes the tombstones. Raises `BadInput` naming rows that no shard holds and shards that there are not.

    Returns where the rows are: `rows` {id: shards of this recipe}, `shards`, `also_in` {recipe: ids}, as another
    recipe on the same data goes on using them, and `source`: the files that the team has to clear itself.
    """
    recipe = load_recipe(path)
    store = ArtifactStore().open()
    _require_some(rows, shards)
    requests = shards_of(recipe.preferences, recipe.seed)
    built = {
        (named.recipe, str(named.partition)): named.ref.artifact for named in refs_of(store, SHARD, partitioned=True)
    }
    known = set(requests) | {shard for owner, shard in built if owner == recipe.name}
    if strange := sorted(set(shards) - known):
        raise BadInput(f"no shard {', '.join(strange)} in {recipe.name}; it has {', '.join(sorted(known))}")
    found = {place: rows_held(store, artifact, frozenset(rows)) for place, artifact in _readable(store, built)}
    _require_known(store, recipe.name, rows, set().union(*found.values()))
    at = now()
    bury(store, recipe.name, "rows", (Tombstone(id=row, at=at, reason=reason) for row in rows))
    stones = [
        Tombstone(id=shard, at=at, reason=reason, artifacts=_stood_for(store, requests, built, recipe.name, shard))
        for shard in shards
    ]
    bury(store, recipe.name, "shards", stones)
    holding = {
        row: sorted(shard for (owner, shard), ids in found.items() if owner == recipe.name and row in ids)
        for row in rows
    }
    also_in: dict[str, set[str]] = {}
    for (owner, _), ids in found.items():
        if owner != recipe.name and ids:
            also_in.setdefault(owner, set()).update(ids)
    touched = {*shards, *chain.from_iterable(holding.values())} & requests.keys()
    return {
        "recipe": recipe.name,
        "rows": holding,
        "shards": sorted(shards),
        "also_in": {owner: sorted(ids) for owner, ids in sorted(also_in.items())},
        "source": sorted({file.url if (file := requests[one].file) else requests[one].source for one in touched}),
    }


def restore(path: Path, rows: list[str], shards: list[str]) -> dict[str, Any]:
    """Takes tombstones back; raises `BadInput` naming what was not withdrawn."""
    recipe = load_recipe(path)
    store = ArtifactStore().open()
    _require_some(rows, shards)
    standing = read_withdrawn(store, recipe.name)
    if strange := sorted((set(rows) - standing.rows) | (set(shards) - standing.shards)):
        raise BadInput(f"not withdrawn from {recipe.name}: {', '.join(strange)}")
    asked: list[tuple[What, list[str]]] = [("rows", rows), ("shards", shards)]
    for what, ids in asked:
        lift(store, recipe.name, what, ids)
    return {"recipe": recipe.name, "rows": sorted(rows), "shards": sorted(shards)}


def show_withdrawal(result: dict[str, Any]) -> None:
    for row, shards in result["rows"].items():
        print(f"{row}: {', '.join(shards) or 'in no current shard, only in older artifacts'}")
    for shard in result["shards"]:
        print(f"{shard}: the whole shard")
    for recipe, ids in result["also_in"].items():
        print(f"still used by recipe {recipe}: {', '.join(ids)} (withdraw there too)")
    print(f"\nwithdrawn; `align run` builds {result['recipe']} without them, `align gc` then erases their text")
    for place in result["source"]:
        print(f"not touched, it is yours: {place}")


def show_restored(result: dict[str, Any]) -> None:
    print(f"restored, from the next run on: {', '.join([*result['rows'], *result['shards']])}")


def _require_some(rows: list[str], shards: list[str]) -> None:
    if not rows and not shards:
        raise BadInput("give --row-id or --shard")


def _readable(store: Store, built: dict[tuple[str, str], Artifact]) -> Iterable[tuple[tuple[str, str], Artifact]]:
    return ((place, one) for place, one in built.items() if store.erasure_of(one) is None or store.find(SHARD, one.key))


def _require_known(store: Store, recipe: str, rows: list[str], found: set[str]) -> None:
    """Rows that no current shard holds may be in older artifacts, or be withdrawn already."""
    unknown = set(rows) - found - read_withdrawn(store, recipe).rows
    for commit in store.commits(SHARD) if unknown else ():
        unknown -= rows_held(store, commit.artifact, frozenset(unknown))
        if not unknown:
            return
    if unknown:
        raise BadInput(f"no shard that was built holds row {', '.join(sorted(unknown))}", field="--row-id")


def _stood_for(
    store: Store,
    requests: dict[str, ShardRequest],
    built: dict[tuple[str, str], Artifact],
    recipe: str,
    shard: str,
) -> list[str]:
    """Keys of the artifacts that were ever built of a shard's source, whatever it held then."""
    current = built.get((recipe, shard))
    keys = {current.key} if current else set()
    wanted = requests.get(shard)
    if wanted is None and current is not None:
        wanted = ShardRequest.model_validate_json(store.read(current, REQUEST_FILE))
    for commit in store.commits(SHARD):
        asked = ShardRequest.model_validate_json(store.read(commit.artifact, REQUEST_FILE))
        if wanted is not None and _place(asked) == _place(wanted):
            keys.add(commit.key)
    return sorted(keys)


def _place(request: ShardRequest) -> tuple[object, ...]:
    """Where a request's records come from, not what they say."""
    hub = request.hub and (request.hub.hub, request.hub.config, request.hub.split)
    return (request.file and request.file.url, hub, request.embedded, request.seed, request.part, request.parts)
