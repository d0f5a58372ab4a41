"""`align sources`: what each source of preference data did, by policies that are trained without it.

A source's value is the whole policy's result minus that of a policy which never saw the source, paired item by item.
The policies are ordinary ones, of recipes that are derived from this one; reference log-probs, the baseline's answers
and everything else that is the same is found in the store, so that each costs a training and its evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.errors import BadInput, be, counted, did_you_mean
from alignment.recipe import Recipe, load_recipe
from alignment.recipe.load import read_recipe
from alignment.store import Commit
from alignment_dags import api
from alignment_dags.nights.worth import price_of
from alignment_dags.recipes import Derived, derived
from alignment_dags.registry.source_values import kept_rows, values
from alignment_dags.run.plan import Planned, plan
from alignment_dags.run.workspace import MANIFEST, Workspace
from resources.home import ensure_home
from resources.pools import load_pools
from resources.store import ArtifactStore

Say = Callable[[str], None]
Run = Callable[[Path, Say], object]
"""Brings the recipe in a file up to date."""

POLICY = "policy_checkpoint"
ALONE = ("gate=none", "publish=null", "alerts=null")
"""Changes of a recipe that is run for its results: nothing of it is registered, published or told to anybody."""
LORA_RATE = 10
"""An adapter takes about ten times the learning rate of full training (Schulman et al. 2025, "LoRA Without Regret")."""


def run_alone(file: Path, say: Say) -> object:
    """Brings a recipe up to date in a process of its own, as `align run` does."""
    return api.open(str(file)).run(say)


def sources_of(
    path: Path, chosen: Sequence[str], full: bool, dry_run: bool, say: Say, run: Run = run_alone
) -> dict[str, Any]:
    """Trains the policies that are missing, and compares; with `dry_run` it only says what that would take.

    `policies` (of which `to_train` are not there yet), `seconds` and `price` of these (None where they are not known),
    and `sources`, the worst first: `source`, `recipe` (that of the policy without it), `rows`, and `metrics`, each with
    the source's value as `difference`. `out_of_date` are sources whose data or settings changed while policies were
    trained. Raises `BadInput` for a recipe without several sources.
    """
    ensure_home()
    recipe = load_recipe(path)
    names = [source.name for source in recipe.preferences.sources]
    if len(names) < 2:
        why = "a source's value is what a policy without it lacks: name two or more under preferences.sources"
        raise BadInput(why, file=str(path), field="preferences.sources")
    if unknown := [name for name in chosen if name not in names]:
        known = did_you_mean(unknown[0], names) or f"; it has {', '.join(names)}"
        raise BadInput(f"the recipe has no source '{unknown[0]}'{known}", field="--source")
    wanted = [name for name in names if not chosen or name in chosen]
    changes = [*ALONE, *_adapter(recipe, full)]
    whole = derived(path, changes, f"{recipe.name}_whole")
    weighs = any(source.weight is not None for source in recipe.preferences.sources)
    kept = _kept(whole, names) if weighs else {}
    without = {name: _without(path, recipe, name, changes, kept or {}) for name in wanted}
    lacking = len(without) if kept is None else sum(made(one) is None for one in without.values())
    to_train = lacking + (made(whole) is None)
    seconds, price = (None if part is None else part * to_train for part in price_of(Workspace(recipe, load_pools())))
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "whole": whole.recipe.name,
        "policies": 1 + len(without),
        "to_train": to_train,
        "seconds": seconds,
        "price": price,
        "sources": [],
        "out_of_date": [],
    }
    say(price_told(result))
    if dry_run:
        return result
    run_each([whole], say, run)
    if weighs:  # how many rows the whole keeps of each source is known now
        kept = _kept(whole, names)
        without = {name: _without(path, recipe, name, changes, kept or {}) for name in wanted}
    run_each(list(without.values()), say, run)
    names_of = {name: one.recipe.name for name, one in without.items()}
    measured, out_of_date = values(ArtifactStore().open(), whole.recipe.name, names_of)
    return result | {"sources": measured, "out_of_date": out_of_date}


def run_each(recipes: Sequence[Derived], say: Say, run: Run) -> None:
    """Writes derived recipes, all before the first runs, and brings them up to date one after the other."""
    for file in [one.write() for one in recipes]:
        say(f"{file.stem} …")
        run(file, say)


def _adapter(recipe: Recipe, full: bool) -> list[str]:
    """Changes by which a LoRA adapter is trained, unless the recipe has one, or trains more than once."""
    if full or recipe.dpo.lora is not None or len(recipe.links) > 1 or recipe.sweep is not None:
        return []
    section = recipe.training.spelling.section
    return [f"{section}.lora={{}}", f"{section}.learning_rate={recipe.dpo.learning_rate * LORA_RATE:.6g}"]


def _without(path: Path, recipe: Recipe, name: str, changes: Sequence[str], kept: Mapping[str, int]) -> Derived:
    """The recipe that lacks a source, and has `kept` rows of each other one that is named there in place of its weight:
    else a small source that is gone would leave more rows of the others."""
    written = read_recipe(path)["preferences"]  # as a list, or in a section
    listed = written if isinstance(written, list) else written["sources"]
    left = [
        {key: value for key, value in source.items() if key != "weight"} | {"keep_rows": kept[source["name"]]}
        if source["name"] in kept and source.get("weight") is not None
        else source
        for source in listed
        if source["name"] != name
    ]
    data = left if isinstance(written, list) else written | {"sources": left}
    return derived(path, [*changes, f"preferences={json.dumps(data)}"], f"{recipe.name}_without_{name}")


def _kept(whole: Derived, sources: Sequence[str]) -> dict[str, int] | None:
    """Rows of each source that the policy of all sources has; None where its manifest is not made."""
    manifest = made(whole, MANIFEST)
    if manifest is None:
        return None
    rows = kept_rows(ArtifactStore().open(), manifest.artifact)
    return {name: sum(count for shard, count in rows.items() if shard.startswith(f"{name}-")) for name in sources}


def made(one: Derived, node: str = POLICY) -> Commit | None:
    """What a node of a derived recipe, by default its policy, would be now, whether or not the recipe is written; None
    if it is not made yet."""
    return next((step.commit for step in _planned(one) if step.node.name == node), None)


def first_missing(one: Derived) -> set[str]:
    """The nodes of a derived recipe that are to be made, for all of which everything above is there."""
    return {step.node.name for step in _planned(one) if step.state == "missing"}


def _planned(one: Derived) -> list[Planned]:
    workspace = Workspace(one.recipe, load_pools())
    return plan(workspace, withdrawn=one.withdrawn(workspace.store))


def price_told(result: Mapping[str, Any]) -> str:
    """What a comparison of policies takes, in one line."""
    seconds, price = result["seconds"], result["price"]
    policies = counted(result["policies"], "policy", "policies")
    lead = f"{result['to_train']} of {policies} {be(result['to_train'])} to be trained and evaluated"
    if not result["to_train"] or seconds is None:
        return f"{lead}{'; what one takes is known after the first `align run`' if result['to_train'] else ''}"
    told = f"about {seconds:,.0f} s of slots" + ("" if price is None else f" for {price:.2f}")
    return f"{lead}: {told}, if each takes what this recipe's own took"
