"""`align status`: how every recipe stands, its champion, its nights, and the pools, on one screen.

What is behind is decided as a night decides it: by recomputed keys, with one ref a shard and no artifact read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignment.data.hub import HubUnreachable, asking_briefly
from alignment.errors import BadInput, CorruptArtifact, MissingArtifact, counted, first_few
from alignment.progress import duration
from alignment.recipe import Recipe, load_recipe
from alignment.stages.execute import REQUEST_FILE
from alignment.store import Store
from alignment_dags.nights.decide import REFUSED
from alignment_dags.nights.records import NightBook
from alignment_dags.nights.state import State, state_of
from alignment_dags.recipes import RECIPES, flat, has_schedule, have_run, recipe_names
from alignment_dags.run.workspace import Workspace
from assets.building.node import NotNeeded
from assets.building.upstream import NotBuilt, Upstream
from assets.champion import registered_champion
from resources.home import PROJECT
from resources.pools import Pools, load_pools
from resources.store import ArtifactStore

BRIEF = 2.0
"""Seconds for new content of a recipe's source, and for an answer of the hub."""


def status(files: Sequence[Path], now: datetime) -> dict[str, Any]:
    """`recipes` (name, file, champion, state, stale, last_night, next_night), `pools`, and Dagster's `problem`.

    `files` are the recipes to look at; none means all in use and all that have run. Once any has run, the shipped ones
    that have neither run nor a schedule are only named (`not_run`). A recipe that cannot be read is listed with its
    `problem`, and the others stand.
    """
    store, pools = ArtifactStore().open(), load_pools()
    names = {} if files else recipe_names()
    not_run = _not_run(names, store)
    paths = list(files) or list(dict.fromkeys(path for name, path in names.items() if name not in not_run))
    with asking_briefly(BRIEF):
        recipes = [_recipe(path, store, pools, now) for path in paths]
    at = now.isoformat(timespec="seconds")
    told = {"recipes": recipes, "not_run": not_run, "store": store.shown, "at": at, "problem": None}
    try:
        return told | {"pools": _pools(pools, _taken())}
    except BadInput as error:
        return told | {"pools": _pools(pools, {}), "problem": str(error)}


def _not_run(names: Mapping[str, Path], store: Store) -> list[str]:
    ran = have_run(store)
    if os.environ.get(RECIPES) or not ran & names.keys():
        return []
    shipped = {name: path for name, path in names.items() if path.parent == PROJECT / "recipes" and name not in ran}
    return [name for name, path in shipped.items() if not has_schedule(path)]


def _recipe(path: Path, store: Store, pools: Pools, now: datetime) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": path.stem,
        "file": str(path),
        "champion": None,
        "state": "unknown",
        "shards": None,
        "stale": {},
        "last_night": None,
        "next_night": None,
        "problem": None,
    }
    try:
        recipe = load_recipe(path)
        told["name"] = recipe.name
        told |= {"last_night": _last_night(store, recipe), "next_night": _next_night(recipe, now)}
        workspace = Workspace(recipe, pools, lambda: store)
        upstream = workspace.upstream()
        told["champion"] = _champion(store, upstream, recipe, now)
        state = state_of(workspace, BRIEF)
        told["shards"] = state.total
        told["stale"] = dict(stale(workspace, upstream, state))
        never = upstream.ref("policy_checkpoint") is None
        told["state"] = "new" if never else _word(state, told["stale"])
    except HubUnreachable as error:
        told["problem"] = str(error)
    except (BadInput, MissingArtifact, CorruptArtifact) as error:
        told |= {"problem": str(error), "state": "bad"}
    return told


def _word(state: State, behind: dict[str, str]) -> str:
    """`current`, `gated` (the gate said no to the current policy), or `stale`."""
    if state.verdict in REFUSED and list(behind) == ["registered_model"]:
        return "gated"
    return "stale" if behind else "current"


def _champion(store: Store, upstream: Upstream, recipe: Recipe, now: datetime) -> dict[str, Any] | None:
    champion = registered_champion(store, upstream.get("registered_model"))
    if champion.registration is None:
        return None
    since = store.commit_of(champion.registration).started_at
    age = (now - datetime.fromisoformat(since).astimezone(UTC)).total_seconds()
    return {
        "model": recipe.model_name,
        "version": champion.version,
        "since": since,
        "age": ago(age),
        "by": "the gate" if champion.decision is None else champion.decision.by,
    }


def ago(seconds: float) -> str:
    """An age for a person: `duration`, and days from two on."""
    return duration(seconds) if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days"


def _last_night(store: Store, recipe: Recipe) -> dict[str, Any] | None:
    night = next(NightBook(store, recipe.name).latest(), None)
    if night is None:
        return None
    return {"at": night.scheduled_at.isoformat(timespec="minutes"), "outcome": night.outcome, "reason": night.reason}


def _next_night(recipe: Recipe, now: datetime) -> str | None:
    if recipe.schedule is None:
        return None
    return recipe.schedule.next_night(now).isoformat(timespec="minutes")


# What is stale, and why.


def stale(workspace: Workspace, upstream: Upstream, state: State) -> Iterator[tuple[str, str]]:
    """Stage (or `N shards`) to why it is behind, upstream first."""
    if state.upgrade:
        names = ", ".join(moved.stage for moved in state.upgrade)
        yield "version", f"makes {names} anew: `align upgrade {workspace.recipe.name}`"
    for name in state.base:
        yield name, why(workspace, upstream, name)
    for words, shards in (("new or changed", state.shards), ("not scored by this reference", state.reference)):
        if shards:
            yield f"{counted(len(shards), 'shard')} {words}", first_few(shards)
    for words, reasons in (("cannot be read", state.unreadable), ("may still be written", state.unsettled)):
        if reasons:
            yield f"{counted(len(reasons), 'shard')} {words}", first_few(sorted(reasons.values()), "; ")
    if state.base or state.shards or state.reference:
        yield "later stages", "wait for these"
        return
    refused = state.verdict in REFUSED and state.train == ("registered_model",)
    for name in (("preference_manifest",) if state.manifest_behind else ()) + state.train:
        yield name, f"the gate says {state.verdict}" if refused else why(workspace, upstream, name)


def why(workspace: Workspace, upstream: Upstream, name: str) -> str:
    """Why a stage is behind: never made, another version of its code, other settings, or other inputs."""
    node = next(node for node in workspace.nodes if node.name == name)
    ref = upstream.ref(name)
    if ref is None:
        return "never made"
    try:
        commit = workspace.store.commit_of(ref.artifact)
        request = node.request(upstream, None)
        before = json.loads(workspace.store.read(ref.artifact, REQUEST_FILE))
    except (NotBuilt, NotNeeded):
        return "waits for a stage above"
    except (MissingArtifact, CorruptArtifact) as error:
        return str(error)
    if commit.code_version != node.stage.code_version:
        return f"code version {commit.code_version} → {node.stage.code_version}"
    if node.stage.key(request) == commit.key:
        return "not reported yet" if ref.mlflow_run_id is None else "waits for a stage above"
    old, new = dict(flat(before)), dict(flat(request.model_dump(mode="json")))
    changed = [key for key in new if old.get(key, new[key]) != new[key]]
    inputs = sorted({_input(key) for key in changed if _is_pointer(key)})
    told = [f"{key} {old[key]} → {new[key]}" for key in changed if not _is_pointer(key)]
    told += [f"another {name}" for name in inputs]
    return first_few(told) or "its request changed"


POINTER = ("kind", "key", "attempt", "digest", "sha256", "size", "url")


def _is_pointer(key: str) -> bool:
    """Whether a key belongs to a pinned artifact or file, and is no setting."""
    return key.rpartition(".")[2] in POINTER


def _input(key: str) -> str:
    return key.rpartition(".")[0] or key


# Pools, and who holds their slots.


def _pools(pools: Pools, taken: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "slots": pool.slots,
            "taken": taken.get(name),
            "gpus": pool.gpus_per_slot,
            "accelerator": pool.accelerator,
            "price_per_hour": pool.price_per_hour or None,
        }
        for name, pool in pools.pools.items()
    ]


def _taken() -> dict[str, int]:
    """Slots of each pool that Dagster's steps hold now; empty where Dagster has no storage yet."""
    from resources.home import dagster_home

    if not (dagster_home() / "history").exists() and not (dagster_home() / "storage").exists():
        return {}
    from resources.databases import dagster_instance

    with dagster_instance() as instance:
        storage = instance.event_log_storage
        names = [pool.name for pool in storage.get_pool_limits()]
        return {name: len(storage.get_concurrency_info(name).claimed_slots) for name in names}


def show_status(result: dict[str, Any]) -> None:
    """Prints a line for each recipe, below it what is stale and why, and the pools."""
    from alignment_dags.cli.output import columns, painted

    rows, notes = [], []
    for recipe in result["recipes"]:
        champion, night = recipe["champion"], recipe["last_night"]
        rows.append(
            (
                recipe["name"],
                "-" if champion is None else f"{champion['version']}, {champion['age']} ago",
                "-" if recipe["shards"] is None else str(recipe["shards"]),
                "-" if night is None else f"{night['at'][:16]} {night['outcome']}",
                (recipe["next_night"] or "-")[:16],
                recipe["state"],
            )
        )
        if recipe["problem"]:
            notes.append(f"{recipe['name']}: {recipe['problem']}")
        if recipe["state"] in ("stale", "gated"):
            notes += [f"{recipe['name']}: {stage}: {reason}" for stage, reason in recipe["stale"].items()]
    print(painted(columns(("recipe", "champion", "shards", "last night", "next night", "state"), rows)))
    for note in notes:
        print(f"  {note}")
    if result["not_run"]:
        print(f"not run yet, `align status NAME` looks at one: {', '.join(result['not_run'])}")
    pools = [
        (
            pool["name"],
            f"{'-' if pool['taken'] is None else pool['taken']} of {pool['slots']}",
            f"{pool['gpus']} × {pool['accelerator'] or 'GPU'}" if pool["gpus"] else "-",
            "-" if pool["price_per_hour"] is None else f"{pool['price_per_hour']:g}",
        )
        for pool in result["pools"]
    ]
    print("\n" + columns(("pool", "slots taken", "GPUs a slot", "USD an hour"), pools))
    if result["problem"]:
        print(f"  slots taken: {result['problem']}")
    print(f"store: {result['store']}")
