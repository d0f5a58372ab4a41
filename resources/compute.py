"""Where work may run: the pools as a Dagster resource, and what a recipe's `residency` demands of every place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
from pydantic import BaseModel, Field

from alignment.address import shown
from alignment.errors import BadInput
from alignment.models.quantised import missing
from alignment.recipe.evaluation import Generate
from alignment.recipe.load import read_yaml
from alignment.recipe.recipe import Recipe
from alignment.store import Store
from resources.home import tracking_uri
from resources.pools import REMOTE, Pools, load_pools, parse_pools, pools_file

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
OPENAI, HUB = "https://api.openai.com", "https://huggingface.co"


class ComputePools(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The pools in `file` (ALIGN_POOLS, or recipes/pools.yaml) with what a deployment `changes` in them."""

    file: str = ""
    changes: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Pool name to the keys that are different here, as {"h100": {"launcher": "ray"}}. A new name is a new pool."""

    def load(self) -> Pools:
        """The pools; raises `BadInput` that names the file and the key of a mistake."""
        path = Path(self.file) if self.file else pools_file()
        if not self.changes:
            return load_pools(path)
        data = read_yaml(path, "pools file")
        pools = {name: dict(pool) for name, pool in (data.get("pools") or {}).items()}
        for name, changed in self.changes.items():
            pools[name] = pools.get(name, {}) | changed
        return parse_pools(data | {"pools": pools}, path)


def check_packages(recipe: Recipe, pools: Pools) -> None:
    """Raises `BadInput` for a package that a stage would need in this environment; elsewhere the stage says so."""
    stages = [("policy", link.quantise) for link in recipe.links]
    if recipe.sft is not None:
        stages = [("sft", recipe.sft.quantise), *stages]
    if recipe.scores:
        stages.append(("reference", recipe.reference_quantise))
    for stage, quantise in stages:
        problem = missing(quantise)
        if problem is not None and pools[getattr(recipe.pools, stage)].launcher not in REMOTE:
            raise BadInput(problem, field=f"pools.{stage}")


def check_processes(recipe: Recipe, pools: Pools) -> None:
    """Raises `BadInput` for a pool of several processes where one does the work, before hours of training."""
    if recipe.on_policy is not None and pools[recipe.pools.policy].world_size > 1:
        raise BadInput("grpo trains in one process; give a pool of launcher: step", field="pools.policy")
    if pools[recipe.pools.responses].world_size == 1:
        return
    for name, engine in engines_of(recipe).items():
        if engine.kind != "transformers":
            what = f"one process asks the {engine.kind} of {name}, and the others would idle"
            raise BadInput(f"{what}; give a pool of launcher: step", field="pools.responses")


def engines_of(recipe: Recipe) -> dict[str, Generate]:
    """Who answers prompts, by the recipe's section that says so."""
    engines = {"evals.generate": recipe.evals.generate}
    engines |= {"generate.engine": recipe.generate.engine} if recipe.generate is not None else {}
    return engines | ({"rounds.engine": recipe.rounds.engine} if recipe.rounds is not None else {})


def check_residency(recipe: Recipe, pools: Pools, store: Store) -> None:
    """Raises `BadInput` that names the first place outside of the region that the recipe demands."""
    if recipe.residency is None:
        return
    for place, region in _places(recipe, pools, store):
        if region is None:
            raise BadInput(
                f"{place} is in a region that is not known, and data must stay in {recipe.residency}: name it in"
                f" {pools_file()} (region, regions)",
                field="residency",
            )
        if region != recipe.residency and not region.startswith(f"{recipe.residency}-"):
            raise BadInput(f"{place} is in {region}, and data must stay in {recipe.residency}", field="residency")


def _places(recipe: Recipe, pools: Pools, store: Store) -> Iterator[tuple[str, str | None]]:
    """Every place that sees the recipe's data or models, in words, and its region where that is known."""
    for stage, name in recipe.pools.model_dump().items():
        yield f"pool {name} of pools.{stage}", pools[name].region or pools.region
    addresses = [("the store", store.shown), ("the tracking server", tracking_uri())]
    if recipe.judge is not None and recipe.judge.kind != "rubric" and recipe.judge.base_url is None:
        addresses.append(("the judge", OPENAI))
    addresses += [(f"the endpoint of {path}", url) for path, url in _endpoints(recipe, "")]
    if recipe.publish is not None:
        addresses.append(("publish", recipe.publish.folder or HUB))
    if recipe.alerts is not None and recipe.alerts.webhook_env is not None:
        webhook = urlsplit(os.environ.get(recipe.alerts.webhook_env, "").strip())
        if webhook.hostname:  # its path is a secret; an error's text that it is sent may quote a row
            addresses.append((f"the webhook in {recipe.alerts.webhook_env}", f"{webhook.scheme}://{webhook.hostname}"))
    for what, address in addresses:
        yield f"{what} {shown(address)}", region_of(address, pools)


def _endpoints(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every address of an API that a recipe names, with the key of its section."""
    if isinstance(value, BaseModel):
        if (url := getattr(value, "base_url", None)) is not None:
            yield path, url
        for name in type(value).model_fields:
            yield from _endpoints(getattr(value, name), f"{path}.{name}" if path else name)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _endpoints(item, f"{path}.{index}")


def region_of(address: str, pools: Pools) -> str | None:
    """The region of an address: as pools.yaml tells, or this machine's for a folder or an address on it."""
    known = [prefix for prefix in pools.regions if shown(address).startswith(prefix.rstrip("/"))]
    if known:
        return pools.regions[max(known, key=len)]
    parts = urlsplit(address)
    is_here = parts.scheme in ("", "file", "sqlite") or parts.hostname in LOCAL_HOSTS
    return pools.region if is_here else None
