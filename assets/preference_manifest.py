"""`preference_manifest`: which shards, under which reference, a policy is trained on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alignment.data.manifest import by_source, read_manifest
from alignment.data.mixing import Mix
from alignment.data.overlap import strings_in
from alignment.data.shards import mixes_of
from alignment.data.sources import SuiteItems
from alignment.data.statistics import BY_SOURCE
from alignment.data.withdrawal import holds
from alignment.errors import BadInput
from alignment.guards import manifest_guards
from alignment.recipe.recipe import Recipe
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.preference_manifest import STAGE, ManifestRequest, Selection, TrainRows
from alignment.stages.stage import ManifestSummary
from alignment.store import Artifact, Commit
from assets.building.node import Node, Shown
from assets.building.show import findings_table, table
from assets.building.upstream import Upstream
from assets.pins import suite_items, suite_spec
from assets.preference_shard import preference_shard
from assets.reference_logprobs import reference_logprobs
from eval.suites import suite_of
from eval.suites.items import load_items

WITHDRAWN = "withdrawn"
"""Why a shard is left out that was withdrawn as a whole."""
GENERATED = "generated"
"""The name of the shard of generated pairs in a manifest."""


def preference_manifest(recipe: Recipe) -> Node:
    """The node of the pinned training set."""
    scored = reference_logprobs(recipe) if recipe.needs_reference else None

    def request(upstream: Upstream, shard: str | None) -> ManifestRequest:
        chosen = chosen_shards(recipe, upstream, scored)
        return ManifestRequest(
            shards=chosen.shards,
            references=chosen.references,
            left_out=chosen.left_out,
            mix=chosen.mixes,
            reads_numbers=any(link.method.numbers for link in recipe.links),
            **filters(recipe),
        )

    from_source = ("preference_shard",) if scored is None else (recipe.start, "preference_shard", scored.name)
    made = ("generated_shard",) if scored is None else ("generated_shard", "generated_logprobs")
    generated = () if recipe.generate is None else made
    pinned = "shards" if scored is None else "shards and their reference log-probs"
    description = f"The pinned set of {pinned}, and the train / held-out split."
    return manifest(recipe, "preference_manifest", description, (*from_source, *generated), request)


def manifest(
    recipe: Recipe,
    name: str,
    description: str,
    needs: tuple[str, ...],
    request: Callable[[Upstream, str | None], ManifestRequest],
) -> Node:
    """The node of a pinned set, whichever it is: that of the shards, of a link, of a round, or a part of one."""
    return Node(
        name=name,
        phase="train",
        stage=STAGE,
        description=description,
        kinds=frozenset({"json", "parquet"}),
        needs=needs,
        request=request,
        show=partial(show, sources=source_names(recipe)),
        guards=manifest_guards(source_names(recipe)),
    )


def source_names(recipe: Recipe) -> tuple[str, ...]:
    """The names of the recipe's sources; none where it has one without a name."""
    return tuple(source.name for source in recipe.preferences.sources)


def filters(recipe: Recipe) -> dict[str, Any]:
    """The fields of a request that say which rows of its shards are left out, and how many are held out."""
    return {
        "held_out_fraction": recipe.held_out_fraction,
        "max_length_gap": recipe.preferences.max_length_gap,
        "min_reference_logp": recipe.preferences.min_reference_logp,
        "near_duplicates": recipe.preferences.near_duplicates,
        "decontaminate": decontaminated(recipe),
    }


@dataclass(frozen=True)
class Chosen:
    """The shards of a manifest by name, with their reference log-probs and shares, and why others are left out."""

    shards: dict[str, Artifact]
    references: dict[str, Artifact]
    left_out: dict[str, str]
    mixes: tuple[Mix, ...]


def chosen_shards(recipe: Recipe, upstream: Upstream, scored: Node | None) -> Chosen:
    """Every shard that is as its source and its reference are now; `scored` makes the log-probs, None without any."""
    shards: dict[str, Artifact] = {}
    references: dict[str, Artifact] = {}
    left_out: dict[str, str] = {}
    if scored is not None:
        upstream.refs(scored.name)
    keys = expected_keys(upstream, recipe)
    withdrawn, withdrawn_names = upstream.withdrawn(), withdrawn_shards(upstream, recipe)
    for name, key in keys.items():
        rows = upstream.get("preference_shard", name)
        reference = None if scored is None else upstream.get(scored.name, name)
        if name in withdrawn_names:
            left_out[name] = WITHDRAWN
        elif rows is None:
            left_out[name] = "not built"
        elif holds(upstream.store, rows, withdrawn.rows):
            left_out[name] = "rows of it were withdrawn, and it was not built without them"
        elif key is not None and rows.key != key:
            left_out[name] = "not built from what the source holds now"
        elif scored is None:
            shards[name] = rows
        elif reference is None:
            left_out[name] = "no reference log-probs"
        elif reference.key != scored.stage.key(scored.request(upstream, name)):
            left_out[name] = "its reference log-probs are of other rows, another checkpoint or other settings"
        else:
            shards[name], references[name] = rows, reference
    mixes = mixes_of(recipe.preferences, shards, recipe.seed)  # generated pairs have no share
    if recipe.generate is not None:
        if GENERATED in keys:
            raise BadInput(f"a source's shard is called {GENERATED}, as that of `generate` is", field="preferences")
        shards[GENERATED] = upstream("generated_shard")
        if scored is not None:
            references[GENERATED] = upstream("generated_logprobs")
    return Chosen(shards, references, left_out, mixes)


def chained_manifest(recipe: Recipe, name: str, logprobs: str, *, as_reference: bool, share: float | None) -> Node:
    """The node of the set that a later link of a chain is trained on: the same shards, held-out rows and filters.

    `logprobs` names the node with the log-probs of the policy that the link starts from. They are its reference with
    `as_reference`; `share` is how many of the pairs it takes of those that this policy disagrees on most.
    """

    def request(upstream: Upstream, shard: str | None) -> ManifestRequest:
        first = ManifestRequest.model_validate_json(upstream.store.read(upstream("preference_manifest"), REQUEST_FILE))
        policy = upstream(logprobs)
        select = None if share is None else Selection(share=share, policy=policy, references=first.references)
        references = dict.fromkeys(first.shards, policy) if as_reference else first.references
        return first.model_copy(update={"references": references, "select": select})

    told = "" if share is None else f", of the training pairs the {share:.0%} that its start disagrees on most"
    description = f"The pinned set of this link: the shards, rows and split of preference_manifest{told}."
    return manifest(recipe, name, description, ("preference_manifest", logprobs), request)


def part_manifest(recipe: Recipe, name: str, most: int) -> Node:
    """The node of the same set with at most so many training rows, drawn by the recipe's seed."""

    def request(upstream: Upstream, shard: str | None) -> ManifestRequest:
        whole = ManifestRequest.model_validate_json(upstream.store.read(upstream("preference_manifest"), REQUEST_FILE))
        return whole.model_copy(update={"train_rows": TrainRows(most=most, seed=recipe.seed)})

    about = f"The pinned set with at most {most:,} training rows."
    return manifest(recipe, name, about, ("preference_manifest",), request)


def decontaminated(recipe: Recipe) -> dict[str, SuiteItems] | None:
    """The items of the suites that no training row may hold, pinned by content; None if the recipe names no suite."""
    selected = recipe.evals.selected()
    return {name: suite_items(name, selected[name], recipe.seed) for name in recipe.preferences.decontaminate} or None


def expected_keys(upstream: Upstream, recipe: Recipe) -> dict[str, str | None]:
    """Shard name to the key that its artifact should have, for all recorded shards and all shards of the source.

    The key is None if the source does not list the shard now. A recorded shard stays until it is withdrawn, so a folder
    that cannot be reached removes no data from the set.
    """
    recorded, built = upstream.refs("preference_shard"), preference_shard(recipe)
    keys: dict[str, str | None] = dict.fromkeys(recorded)
    try:
        listed = upstream.shards(recipe)
    except BadInput:
        if not recorded:
            raise
        return keys
    for name in listed:
        keys[name] = None
        with suppress(BadInput):
            keys[name] = built.stage.key(built.request(upstream, name))
    return keys


def withdrawn_shards(upstream: Upstream, recipe: Recipe) -> set[str]:
    """Names of withdrawn shards, and of listed shards with the data of a shard withdrawn under another name."""
    names = set(upstream.withdrawn().shards)
    with suppress(BadInput):
        names |= set(upstream.shards(recipe).withdrawn)
    return names


def evaluation_items(recipe: Recipe) -> dict[str, dict[str, list[str]]]:
    """Every item of the recipe's suites by id, each as the texts that stand in it; raises `BadInput` for a suite that
    cannot be read."""
    return {
        name: {
            item.id: list(strings_in(item.fields))
            for item in load_items(suite_of(recipe.evals, name), suite_spec(name, suite), recipe.seed)
        }
        for name, suite in recipe.evals.selected().items()
    }


def show(commit: Commit, folder: Path, sources: Collection[str] = ()) -> Shown:
    """What the numbers of the data say, and the shards that were left out, with the reason. Of several named `sources`
    the guards say what lengths say of each, and the table says nothing of all together."""
    summary = ManifestSummary.of(commit)
    several = sources and by_source(((shard.name, shard) for shard in read_manifest(folder).shards), sources)
    found = [each for each in summary.findings() if not several or each.name not in BY_SOURCE]
    shown = {"preference_data": findings_table(found)} if found else {}
    if summary.left_out:
        shown["left_out"] = table(("shard", "reason"), sorted(summary.left_out.items()))
    return Shown(markdown=shown)
