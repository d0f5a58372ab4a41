"""What a night took: what its runs made, and what was scored for its manifest before it."""

from __future__ import annotations

import logging
from collections.abc import Collection
from datetime import datetime

import dagster as dg

from alignment.recipe import Recipe
from alignment.store import Commit, Store
from alignment.store.store import commits_of
from alignment_dags.nights.between import scored_between
from alignment_dags.nights.book import NightBook
from alignment_dags.nights.costs import Costs, night_costs
from alignment_dags.nights.night import Night
from alignment_dags.nights.runs import runs_since
from alignment_dags.nights.standing import MANIFEST
from assets.building.upstream import Upstream
from assets.evaluation_report import prices
from assets.graph import nodes_of
from resources.pools import Pools

log = logging.getLogger("alignment_dags.nights")


def note_costs(instance: dg.DagsterInstance, recipe: Recipe, pools: Pools, book: NightBook, night: Night) -> Night:
    """The closed night with its costs in its record; without them, and logged, where something cannot be read."""
    if not night.runs:
        return night
    try:
        costs = spent(instance, recipe, pools, book, night)
    except Exception as error:  # whatever it is, the night is over and its record stands
        log.warning("%s: the costs of the %s were not counted: %s", recipe.name, night.told, error)
        return night
    log.info("%s: %s took %s", recipe.name, night.told, costs.told())
    noted = night.model_copy(update={"costs": costs})
    book.write(noted)
    return noted


def spent(instance: dg.DagsterInstance, recipe: Recipe, pools: Pools, book: NightBook, night: Night) -> Costs:
    """What the night has made, and what was scored for it since the manifest that was tried before."""
    made = made_by(runs_since(instance, night), book.store, recipe, pools, night.recorded_at)
    hourly = prices(recipe, pools)
    earlier = (one for one in book.latest() if one.id < night.id)
    between = scored_between(
        book.store,
        night,
        earlier,
        Upstream(book.store, recipe.name).get(MANIFEST),
        {commit.key for commit in made},
        hourly.get("reference_logprobs"),
    )
    return night_costs(made, hourly, between)


def made_by(runs: Collection[str], store: Store, recipe: Recipe, pools: Pools, moment: datetime) -> list[Commit]:
    """The recipe's current artifacts that these Dagster runs reported, of those begun at or after a moment."""
    moment = moment.replace(microsecond=0)  # commits say the second
    upstream = Upstream(store, recipe.name)
    reported = []
    for node in nodes_of(recipe, pools):
        refs = upstream.refs(node.name).values() if node.partitioned else [upstream.ref(node.name)]
        reported += [ref.artifact for ref in refs if ref is not None and ref.dagster_run_id in runs]
    return [one for one in commits_of(store, reported) if datetime.fromisoformat(one.started_at) >= moment]
