"""`align prefs withdraw` and `restore`: tombstones for known rows and shards of a recipe."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.address import shown
from alignment.data.shards import Shards, overlaps, shards_of
from alignment.data.withdrawal import (
    FOLDER,
    SHARDS,
    Holder,
    RemainingShards,
    Tombstone,
    What,
    Withdrawn,
    bury,
    cause,
    lift,
    now,
    read_withdrawn,
    rows_held,
    tombstone,
    tombstones,
    write,
)
from alignment.errors import BadInput, counted, first_few
from alignment.recipe import Recipe, load_recipe
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.preference_shard import ShardRequest
from alignment.store import Artifact, MissingArtifact, Store
from alignment.store.store import readable_commits, refs_of
from alignment_dags.retention.sampled import PROMPTS, current_sampled, sampled_from
from alignment_dags.retention.text import DATASET, DEMONSTRATIONS, MANIFEST, SHARD
from resources.store import ArtifactStore

SFT_DATA, SAMPLED = "(SFT data)", "(sampled answers)"
NAMED, PROMPTS_NAMED = 3, 20
"""Rows that are named one by one where other recipes use them too; `--json` names all."""


def withdraw(path: Path, rows: list[str], shards: list[str], reason: str) -> dict[str, Any]:
    """Writes the tombstones. Raises `BadInput` naming unknown rows and shards.

    A row id may be of a preference row, of a row for fine-tuning, or of a prompt that answers were sampled to. Returns
    where the rows are: `rows` {id: shards of this recipe, or its SFT data}, `shards`, `generated` {prompt: ids of the
    pairs that were made of answers to it}, `also_in` {recipe: ids} for other recipes that still use the same rows,
    `source`: the files that the team has to clear itself, and `same_records`: why other shards of the recipe are left
    out from now on, as they have the records of a withdrawn one.

    A shard may be one that the recipe had before: its text stays in the store until it is withdrawn.
    """
    recipe = load_recipe(path)
    store = ArtifactStore().open()
    _require_some(rows, shards)
    requests = shards_of(recipe.preferences, recipe.seed)
    built = {
        (named.recipe, str(named.partition)): named.ref.artifact for named in refs_of(store, SHARD, partitioned=True)
    }
    known = set(requests) | {shard for owner, shard in built if owner == recipe.name}
    former = former_shards(store, recipe.name) if set(shards) - known else {}
    if unknown := sorted(set(shards) - known - set(former)):
        had = "".join(f", and had {', '.join(gone)}" for gone in [sorted(set(former) - known)] if gone)
        raise BadInput(f"no shard {', '.join(unknown)} in {recipe.name}; it has {', '.join(sorted(known))}{had}")
    asked = frozenset(rows)
    holders = {place: held for place, shard in built.items() if (held := _held(store, shard, asked, SHARDS))}
    demonstration_holders = {
        (named.recipe, SFT_DATA): held
        for named in refs_of(store, DATASET)
        if (held := _held(store, named.ref.artifact, asked, DEMONSTRATIONS))
    }
    at = now()
    whole = {}
    for shard in shards:
        artifacts = [built[recipe.name, shard]] if (recipe.name, shard) in built else former.get(shard, ())
        stone = tombstone(store, recipe.name, "shards", shard) or Tombstone(id=shard, at=at)
        whole[shard] = _stone(stone, store, requests, artifacts).model_copy(update={"reason": reason})
    sampled = sampled_from(store, asked, _records(store, whole.values()))
    holding_rows = _ids(holders) | (asked & set(sampled.causes))
    known_rows, known_demonstrations = _known(store, recipe.name, asked, holding_rows, _ids(demonstration_holders))
    causes = {row: {row} for row in known_rows}
    for row, taking in sampled.causes.items():
        causes[row] = causes.get(row, set()) | taking
    buried = (Tombstone(id=row, at=at, reason=reason, because=_because(row, causes[row])) for row in sorted(causes))
    bury(store, recipe.name, "rows", buried)
    stones = (Tombstone(id=row, at=at, reason=reason) for row in known_demonstrations)
    bury(store, recipe.name, "demonstrations", stones)
    bury(store, recipe.name, "shards", whole.values())
    holders |= demonstration_holders
    holding = {
        row: sorted(place for (owner, place), ids in holders.items() if owner == recipe.name and row in ids)
        for row in rows
    }
    others = sorted({owner for owner, _ in holders} - {recipe.name})
    touched = {*shards, *chain.from_iterable(holding.values())}
    return {
        "recipe": recipe.name,
        "rows": holding,
        "shards": sorted(shards),
        "generated": {prompt: sorted(sampled.pairs.get(prompt, ())) for prompt in sorted(sampled.prompts)},
        "also_in": {
            other: sorted(_ids({place: ids for place, ids in holders.items() if place[0] == other})) for other in others
        },
        "source": sorted(_own_files(recipe, requests, touched, whole)),
        "same_records": _same_records(requests, read_withdrawn(store, recipe.name), store, whole),
    }


def _own_files(recipe: Recipe, requests: Shards, touched: set[str], whole: Mapping[str, Tombstone]) -> set[str]:
    """The team's own files of the shards, and of the SFT data, that hold what was withdrawn."""
    origins = [requests[name] for name in touched if name in requests]
    origins += (source for name, stone in whole.items() if name not in requests for source in stone.sources)
    dataset = None if recipe.sft is None else recipe.sft.dataset
    files = dataset.files or [] if SFT_DATA in touched and dataset else []
    return {origin.file.url if origin.file else origin.source for origin in origins} | set(map(shown, files))


def restore(path: Path, rows: list[str], shards: list[str]) -> dict[str, Any]:
    """Removes tombstones; raises `BadInput` naming rows and shards that were not withdrawn.

    What was sampled from their prompts goes with them: `along` are the ids of prompts and pairs that were withdrawn
    with these rows and shards alone and are restored too. `staying` are those that stay withdrawn: by themselves,
    with others, or by a version that did not say with what.
    """
    recipe = load_recipe(path)
    store = ArtifactStore().open()
    _require_some(rows, shards)
    withdrawn = read_withdrawn(store, recipe.name)
    unknown = sorted((set(rows) - withdrawn.rows - withdrawn.demonstrations) | (set(shards) - withdrawn.shards))
    if unknown:
        raise BadInput(f"not withdrawn from {recipe.name}: {', '.join(unknown)}")
    stones = filter(None, (tombstone(store, recipe.name, "shards", shard) for shard in shards))
    sampled = set(sampled_from(store, frozenset(rows), _records(store, stones)).causes)
    along, left = _lift_along(store, recipe.name, withdrawn, rows, shards)
    asked: list[tuple[What, list[str]]] = [("rows", rows), ("demonstrations", rows), ("shards", shards)]
    for what, ids in asked:
        lift(store, recipe.name, what, ids)
    staying = (sampled | left) & read_withdrawn(store, recipe.name).rows
    told = {"rows": sorted(rows), "shards": sorted(shards), "along": sorted(along), "staying": sorted(staying)}
    return {"recipe": recipe.name, **told}


def _lift_along(
    store: Store, recipe: str, withdrawn: Withdrawn, rows: list[str], shards: list[str]
) -> tuple[set[str], set[str]]:
    """Lifts what was withdrawn with these rows and shards alone. Returns the ids that were lifted, and those that stay,
    as they were withdrawn by themselves or with others that stand."""
    given = {*rows, *(cause("shards", shard) for shard in shards)}
    standing = {*withdrawn.rows, *withdrawn.demonstrations, *(cause("shards", shard) for shard in withdrawn.shards)}
    along, left = set(), set()
    for stone in tombstones(store, recipe, "rows"):
        if stone.id in rows or not given & set(stone.because):
            continue
        if others := stone.causes & (standing - given):
            write(store, recipe, "rows", stone.model_copy(update={"because": _because(stone.id, others)}))
            left.add(stone.id)
        else:
            lift(store, recipe, "rows", [stone.id])
            along.add(stone.id)
    return along, left


def withdrawn_elsewhere(store: Store, recipe: str) -> list[str]:
    """For each other recipe of the store, how many rows of this one's current shards and SFT data, and which of these
    shards, were withdrawn from it and not from this one, as a sentence. A recipe under a new name uses them again.
    Reads columns of ids, and these only where another recipe has withdrawn rows that this one has not."""
    here, told = read_withdrawn(store, recipe), []
    shards = {name: ref.artifact for name, ref in store.read_refs(recipe, SHARD).items() if name not in here.shards}
    dataset = store.read_ref(recipe, DATASET)
    demonstrations = () if dataset is None else (dataset.artifact,)
    for other in sorted({PurePosixPath(path).name for path in store.matching(store.path(FOLDER), "*")} - {recipe}):
        there = read_withdrawn(store, other)
        rows = _still_held(store, shards.values(), there.rows - here.rows, SHARDS)
        rows |= _still_held(store, demonstrations, there.demonstrations - here.demonstrations, DEMONSTRATIONS)
        stones = filter(None, (tombstone(store, other, "shards", shard) for shard in sorted(there.shards)))
        built = {key for stone in stones for key in stone.artifacts}
        whole = sorted(name for name, artifact in shards.items() if artifact.key in built)
        what = [counted(len(rows), "of its rows", "of its rows")] if rows else []
        what += [f"{'shard' if len(whole) == 1 else 'shards'} {first_few(whole)}"] if whole else []
        if what:
            was = "was" if len(rows) + len(whole) == 1 else "were"
            advice = "`align prefs withdraw` here too, if they have to go"
            told.append(f"{' and '.join(what)} {was} withdrawn from recipe {other}: {advice}")
    return told


def _still_held(store: Store, artifacts: Iterable[Artifact], asked: frozenset[str], holder: Holder) -> set[str]:
    """Those of the rows that artifacts have for use; what is set aside, or erased, is not used."""
    held: set[str] = set()
    for artifact in artifacts if asked else ():
        with suppress(MissingArtifact):
            held |= rows_held(store, artifact, asked, holder.files)
    return held


def show_withdrawal(result: dict[str, Any]) -> None:
    """Prints what was withdrawn, and what remains to be done."""
    for row, shards in result["rows"].items():
        print(f"{row}: {', '.join(shards) or 'in nothing current, only in older artifacts'}")
    for shard in result["shards"]:
        print(f"{shard}: the whole shard")
    generated = result["generated"]
    for prompt, pairs in generated.items() if len(generated) <= PROMPTS_NAMED else ():
        print(f"prompt {prompt}: the answers that were sampled to it, and {counted(len(pairs), 'pair')} made of them")
    if len(generated) > PROMPTS_NAMED:
        pairs = counted(sum(map(len, generated.values())), "pair")
        print(f"{counted(len(generated), 'prompt')}: the answers that were sampled to them, and {pairs} made of them")
    for why in result["same_records"].values():
        print(f"left out too: {why}")
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
    if result["along"]:
        print(f"and what was sampled from their prompts: {first_few(result['along'])}")
    if result["staying"]:
        print(f"still withdrawn, of what was sampled from their prompts: {first_few(result['staying'])}")
        print(f"`align prefs restore {result['recipe']} --row-id ID` restores one; --json names all")


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


def former_shards(store: Store, recipe: str) -> dict[str, set[Artifact]]:
    """The shards that a recipe ever had, as far as its manifests and log-probs name them, each with its artifacts."""
    found: dict[str, set[Artifact]] = {}
    scored = store.read_refs(recipe, "reference_logprobs")
    for shard, ref in scored.items():
        with suppress(MissingArtifact):
            inputs = store.commit_of(ref.artifact).inputs.values()
            found.setdefault(shard, set()).update(artifact for artifact in inputs if artifact.kind == SHARD)
    mine = {named.ref.artifact.key for named in refs_of(store, MANIFEST) if named.recipe == recipe}
    for commit in readable_commits(store, MANIFEST):
        if commit.key in mine or commit.environment.get("recipe") == recipe:
            for name, artifact in commit.inputs.items():
                if artifact.kind == SHARD and not _is_generated(store, name, artifact):
                    found.setdefault(name.removeprefix("shards."), set()).add(artifact)
    return {shard: artifacts for shard, artifacts in found.items() if artifacts}


def _is_generated(store: Store, name: str, artifact: Artifact) -> bool:
    """Whether a shard of a manifest is made of sampled answers; a file may have such a name too."""
    if name != "shards.generated" and not name.startswith("shards.round_"):
        return False
    with suppress(MissingArtifact):
        return "generated" in store.commit_of(artifact).inputs
    return True


def _because(id: str, causes: set[str]) -> list[str]:
    """What a tombstone says of its causes: nothing where it is its own alone."""
    return [] if causes == {id} else sorted(causes)


def _records(store: Store, stones: Iterable[Tombstone]) -> dict[str, set[str]]:
    """Keys of the artifacts that hold withdrawn shards' records and not more, each with the shards' names."""
    found: dict[str, set[str]] = {}
    for stone in stones:
        for key in stone.artifacts:
            commit = store.find(SHARD, key)  # None for one whose text is erased
            if commit is not None and _plain(_asked(store, commit.artifact)) in stone.sources:
                found.setdefault(key, set()).add(stone.id)
    return found


def _same_records(
    requests: Shards, withdrawn: Withdrawn, store: Store, shards: Mapping[str, Tombstone]
) -> dict[str, str]:
    """Other shards of the source that have the records of these withdrawn ones, each with why it is left out."""
    ours = tuple((name, source) for name, source in withdrawn.sources if name in shards)
    left_out = RemainingShards(requests, Withdrawn(sources=ours), lambda shard: None, store).withdrawn
    return {name: why for name, why in left_out.items() if name not in withdrawn.shards}


def _stone(
    stone: Tombstone, store: Store, requests: Mapping[str, ShardRequest], built: Collection[Artifact]
) -> Tombstone:
    """A shard's tombstone, extended by every artifact that was ever built of its records, and by their sources."""
    wanted = [] if stone.id not in requests else [requests[stone.id]]
    wanted += (_asked(store, artifact) for artifact in built)
    keys = {*stone.artifacts, *(artifact.key for artifact in built)}
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
    """`rows` [{row_id, shard, source, source_row}] of a recipe's current shards and SFT data that contain the text, of
    the prompts whose sampled answers do, or that do themselves, and, with `left_out`, of shards that the recipe had
    before and whose text is still there."""
    if not text.strip():
        raise BadInput("the text to look for is empty")
    recipe = load_recipe(path)
    store = ArtifactStore().open()
    rows: list[dict[str, Any]] = []
    former, current = former_shards(store, recipe.name), set()
    for holder in (SHARDS, DEMONSTRATIONS):
        for named in refs_of(store, holder.kind, partitioned=holder.kind == SHARD):
            if named.recipe == recipe.name:
                place = "(SFT data)" if holder.kind == DATASET else named.partition
                rows += ({"shard": place, **row} for row in _holding(store, named.ref.artifact, holder, text))
                former.pop(place or "", None)
                current.add(named.ref.artifact)
    for shard, artifacts in former.items():
        for artifact in artifacts - current:  # a renamed file's is current under its new name
            with suppress(MissingArtifact):
                rows += ({"shard": shard, **row, "left_out": True} for row in _holding(store, artifact, SHARDS, text))
    sampled = current_sampled(store, PROMPTS.kind)
    for commit in store.commits(PROMPTS.kind):
        if any(name == recipe.name for name, _ in sampled.get(commit.key, ())):
            found = {row["row_id"]: row for row in _holding(store, commit.artifact, PROMPTS, text)}
            rows += ({"shard": SAMPLED, **row} for row in found.values())
    return {"rows": rows}


def show_found(result: dict[str, Any]) -> None:
    """Prints the rows that hold a text."""
    for row in result["rows"]:
        place = f"{row['shard']}, left out by now" if row.get("left_out") else row["shard"]
        print(f"{row['row_id']}  {place}: {row['source']} row {row['source_row']}")
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
