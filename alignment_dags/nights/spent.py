"""What a night took: what its runs made, and what was scored for its manifest before it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime

import dagster as dg

from alignment.artifacts import Commit, Store
from alignment.recipe import Recipe
from alignment_dags.nights.between import scored_between
from alignment_dags.nights.book import NightBook
from alignment_dags.nights.costs import Costs, night_costs
from alignment_dags.nights.night import Night
from alignment_dags.nights.runs import runs_since
from alignment_dags.nights.standing import MANIFEST
from assets.evaluation_report import prices
from assets.graph import nodes_of
from assets.upstream import Upstream
from resources.pools import Pools


def spent(instance: dg.DagsterInstance, recipe: Recipe, pools: Pools, book: NightBook, night: Night) -> Costs:
    """What the night has made, and what was scored for it since the manifest that was tried before."""
    made = list(made_by(runs_since(instance, night), book.store, recipe, pools, night.recorded_at))
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


def made_by(runs: Collection[str], store: Store, recipe: Recipe, pools: Pools, moment: datetime) -> Iterator[Commit]:
    """The recipe's current artifacts that these Dagster runs reported, of those begun at or after a moment."""
    moment = moment.replace(microsecond=0)  # commits say the second
    upstream = Upstream(store, recipe.name)
    for node in nodes_of(recipe, pools):
        refs = upstream.refs(node.name).values() if node.partitioned else [upstream.ref(node.name)]
        for ref in refs:
            if ref is not None and ref.dagster_run_id in runs:
                commit = store.commit_of(ref.artifact)
                if datetime.fromisoformat(commit.started_at) >= moment:
                    yield commit
