"""`align prefs withdraw` and `restore`: tombstones for known rows and shards of a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.address import shown
from alignment.data.shards import overlaps, shards_of
from alignment.data.withdrawal import SHARDS, Holder, Tombstone, What, bury, lift, now, read_withdrawn, tombstone
from alignment.errors import BadInput, counted
from alignment.recipe import load_recipe
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.preference_shard import ShardRequest
from alignment.store import Artifact, MissingArtifact, Store
from alignment.store.store import refs_of
from alignment_dags.retention.sampled import PROMPTS, current_sampled, sampled_from
from alignment_dags.retention.text import DATASET, DEMONSTRATIONS, SHARD
from resources.store import ArtifactStore

SFT_DATA, SAMPLED = "(SFT data)", "(sampled answers)"
NAMED = 3
"""Rows that are named one by one where other recipes use them too; `--json` names all."""


def withdraw(path: Path, rows: list[str], shards: list[str], reason: str) -> dict[str, Any]:
    """Writes the tombstones. Raises `BadInput` naming unknown rows and shards.

    A row id may be of a preference row, of a row for fine-tuning, or of a prompt that answers were sampled to. Returns
    where the rows are: `rows` {id: shards of this recipe, or its SFT data}, `shards`, `generated` {prompt: ids of the
    pairs that were made of answers to it}, `also_in` {recipe: ids} for other recipes that still use the same rows, and
    `source`: the files that the team has to clear itself.
    """
    recipe = load_recipe(path)
    store = ArtifactStore().open()
    _require_some(rows, shards)
    requests = shards_of(recipe.preferences, recipe.seed)
    built = {
        (named.recipe, str(named.partition)): named.ref.artifact for named in refs_of(store, SHARD, partitioned=True)
    }
    known = set(requests) | {shard for owner, shard in built if owner == recipe.name}
    if unknown := sorted(set(shards) - known):
        raise BadInput(f"no shard {', '.join(unknown)} in {recipe.name}; it has {', '.join(sorted(known))}")
    asked = frozenset(rows)
    holders = {place: held for place, shard in built.items() if (held := _held(store, shard, asked, SHARDS))}
    demonstration_holders = {
        (named.recipe, SFT_DATA): held
        for named in refs_of(store, DATASET)
        if (held := _held(store, named.ref.artifact, asked, DEMONSTRATIONS))
    }
    sampled = sampled_from(store, asked)
    holding_rows = _ids(holders) | (asked & sampled.ids)
    known_rows, known_demonstrations = _known(store, recipe.name, asked, holding_rows, _ids(demonstration_holders))
    at = now()
    buried = sorted(known_rows | sampled.ids)
    bury(store, recipe.name, "rows", (Tombstone(id=row, at=at, reason=reason) for row in buried))
    stones = (Tombstone(id=row, at=at, reason=reason) for row in known_demonstrations)
    bury(store, recipe.name, "demonstrations", stones)
    whole = (
        _stone(
            tombstone(store, recipe.name, "shards", shard) or Tombstone(id=shard, at=at),
            store,
            requests,
            built.get((recipe.name, shard)),
        ).model_copy(update={"at": at, "reason": reason})
        for shard in shards
    )
    bury(store, recipe.name, "shards", whole)
    holders |= demonstration_holders
    holding = {
        row: sorted(place for (owner, place), ids in holders.items() if owner == recipe.name and row in ids)
        for row in rows
    }
    others = sorted({owner for owner, _ in holders} - {recipe.name})
    touched = {*shards, *chain.from_iterable(holding.values())}
    origins = [requests[name] for name in touched if name in requests]
    sources = {origin.file.url if origin.file else origin.source for origin in origins}
    dataset = None if recipe.sft is None else recipe.sft.dataset
    sources |= set(map(shown, dataset.files or [])) if SFT_DATA in touched and dataset else set()
    return {
        "recipe": recipe.name,
        "rows": holding,
        "shards": sorted(shards),
        "generated": {prompt: sorted(sampled.pairs.get(prompt, ())) for prompt in sorted(sampled.prompts)},
        "also_in": {
            other: sorted(_ids({place: ids for place, ids in holders.items() if place[0] == other})) for other in others
        },
        "source": sorted(sources),
    }


def restore(path: Path, rows: list[str], shards: list[str]) -> dict[str, Any]:
    """Removes tombstones; raises `BadInput` naming rows and shards that were not withdrawn."""
    recipe = load_recipe(path)
    store = ArtifactStore().open()
    _require_some(rows, shards)
    withdrawn = read_withdrawn(store, recipe.name)
    unknown = sorted((set(rows) - withdrawn.rows - withdrawn.demonstrations) | (set(shards) - withdrawn.shards))
    if unknown:
        raise BadInput(f"not withdrawn from {recipe.name}: {', '.join(unknown)}")
    asked: list[tuple[What, list[str]]] = [("rows", rows), ("demonstrations", rows), ("shards", shards)]
    for what, ids in asked:
        lift(store, recipe.name, what, ids)
    return {"recipe": recipe.name, "rows": sorted(rows), "shards": sorted(shards)}


def show_withdrawal(result: dict[str, Any]) -> None:
    """Prints what was withdrawn, and what remains to be done."""
    for row, shards in result["rows"].items():
        print(f"{row}: {', '.join(shards) or 'in nothing current, only in older artifacts'}")
    for shard in result["shards"]:
        print(f"{shard}: the whole shard")
    for prompt, pairs in result["generated"].items():
        print(f"prompt {prompt}: the answers that were sampled to it, and {counted(len(pairs), 'pair')} made of them")
    for recipe, ids in result["also_in"].items():
        named = ", ".join(ids) if len(ids) <= NAMED else f"{len(ids)} of them, such as {ids[0]}"
        print(f"still used by recipe {recipe}: {named} (withdraw there too)")
    print(f"\nwithdrawn; `align run` builds {result['recipe']} without them, `align gc` then erases their text")
    print("between the two, `align prefs evidence` can compare them with rows that the new model never saw")
    for place in result["source"]:
        print(f"your own file, not changed: {place}")


def show_restored(result: dict[str, Any]) -> None:
    """Prints what was restored."""
    print(f"restored, from the next run on: {', '.join([*result['rows'], *result['shards']])}")


def _require_some(rows: list[str], shards: list[str]) -> None:
    if not rows and not shards:
        raise BadInput("give --row-id or --shard")


def _held(store: Store, artifact: Artifact, rows: frozenset[str], holder: Holder) -> set[str]:
    try:
        return holder.held(store, artifact, rows)
    except MissingArtifact:  # erased already
        return set()


def _ids(holders: dict[tuple[str, str], set[str]]) -> set[str]:
    return set(chain.from_iterable(holders.values()))


def _known(
    store: Store, recipe: str, asked: frozenset[str], rows: set[str], demonstrations: set[str]
) -> tuple[set[str], set[str]]:
    """Which ids are preference rows and which are fine-tuning rows, by all artifacts (old ones too) and tombstones."""
    withdrawn = read_withdrawn(store, recipe)
    rows, demonstrations = rows | (asked & withdrawn.rows), demonstrations | (asked & withdrawn.demonstrations)
    for holder, known in ((SHARDS, rows), (DEMONSTRATIONS, demonstrations)):
        for commit in store.commits(holder.kind) if asked - rows - demonstrations else ():
            known.update(holder.held(store, commit.artifact, asked - known))
    if unknown := sorted(asked - rows - demonstrations):
        raise BadInput(f"no artifact holds row {', '.join(unknown)}", field="--row-id")
    return rows, demonstrations


def _stone(stone: Tombstone, store: Store, requests: Mapping[str, ShardRequest], current: Artifact | None) -> Tombstone:
    """A shard's tombstone, extended by every artifact that was ever built of its records, and by their sources."""
    wanted = [] if stone.id not in requests else [requests[stone.id]]
    if current is not None:
        wanted.append(_asked(store, current))
    keys = {*stone.artifacts, *([current.key] if current else [])}
    sources = {_plain(request).model_dump_json(): _plain(request) for request in (*stone.sources, *wanted)}
    for commit in store.commits(SHARD) if wanted else ():
        asked = _asked(store, commit.artifact)
        if any(overlaps(asked, request) for request in wanted):
            keys.add(commit.key)
            if any((asked.part, asked.parts) == (request.part, request.parts) for request in wanted):
                sources[_plain(asked).model_dump_json()] = _plain(asked)
    return stone.model_copy(update={"artifacts": sorted(keys), "sources": list(sources.values())})


def _asked(store: Store, artifact: Artifact) -> ShardRequest:
    return ShardRequest.model_validate_json(store.read(artifact, REQUEST_FILE))


def _plain(request: ShardRequest) -> ShardRequest:
    return request.model_copy(update={"withdrawn": ()})


# `align prefs find`: the ids of the rows with a text. A person who asks for a withdrawal knows the text, not the ids.

TEXTS = ("prompt", "chosen", "rejected", "completion", "text")


def find_rows(path: Path, text: str) -> dict[str, Any]:
    """`rows` [{row_id, shard, source, source_row}] of a recipe's current shards and SFT data that contain the text, and
    of the prompts whose sampled answers do, or that do themselves."""
    if not text.strip():
        raise BadInput("the text to look for is empty")
    recipe = load_recipe(path)
    store = ArtifactStore().open()
    rows: list[dict[str, Any]] = []
    for holder in (SHARDS, DEMONSTRATIONS):
        for named in refs_of(store, holder.kind, partitioned=holder.kind == SHARD):
            if named.recipe == recipe.name:
                place = "(SFT data)" if holder.kind == DATASET else named.partition
                rows += ({"shard": place, **row} for row in _holding(store, named.ref.artifact, holder, text))
    sampled = current_sampled(store, PROMPTS.kind)
    for commit in store.commits(PROMPTS.kind):
        if any(name == recipe.name for name, _ in sampled.get(commit.key, ())):
            found = {row["row_id"]: row for row in _holding(store, commit.artifact, PROMPTS, text)}
            rows += ({"shard": SAMPLED, **row} for row in found.values())
    return {"rows": rows}


def show_found(result: dict[str, Any]) -> None:
    """Prints the rows that hold a text."""
    for row in result["rows"]:
        print(f"{row['row_id']}  {row['shard']}: {row['source']} row {row['source_row']}")
    print(
        f"{counted(len(result['rows']), 'row holds', 'rows hold')} it" if result["rows"] else "no current row holds it"
    )


def _holding(store: Store, artifact: Artifact, holder: Holder, text: str) -> Iterator[dict[str, Any]]:
    """Messages are stored as JSON, so the text is searched for in its JSON form too."""
    written = {text, json.dumps(text, ensure_ascii=False)[1:-1]}
    there = store.commit_of(artifact).files
    for name in (name for name in holder.files if name in there):
        table = pq.read_table(pa.BufferReader(store.read(artifact, name)))
        matches = pa.array([False] * table.num_rows)
        for column in set(TEXTS) & set(table.column_names):
            for form in written:
                holds = pc.fill_null(pc.match_substring(table[column], form), False)
                matches = pc.or_(matches, holds.combine_chunks())
        yield from table.filter(matches).select(["row_id", "source", "source_row"]).to_pylist()
