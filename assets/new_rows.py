"""`new_rows`: the champion on preference pairs that it never saw, before they train anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignment.recipe.recipe import Recipe
from alignment.stages.stage import began_with, first_manifest, scored_by
from alignment.store import Artifact, Commit, Store
from assets.building.node import Node, NotNeeded, Shown
from assets.building.upstream import Upstream
from assets.champion import champion_for
from assets.champion_reference import request_of as request_of_set
from assets.preference_manifest import preference_manifest
from assets.reference_logprobs import scoring
from eval.report.guards import drift_guards, drift_of
from eval.stages.new_rows import STAGE, NewRowsRequest
from eval.summaries import NewRowsSummary

NAME = "new_rows"
MANIFEST = "preference_manifest"
INCOMING = ("incoming/preference_manifest", "incoming/new_rows")
"""What a night that sleeps makes of rows that wait: the set that a training would be pinned to, and the measurement."""


def new_rows(recipe: Recipe) -> Iterator[Node]:
    """The node of the champion's accuracy on the rows that are to be trained on, and where rows may wait for a later
    night, the same of rows that wait: the policy's own manifest stays what it was trained on."""
    assert recipe.evals.new_rows is not None
    yield measurement(recipe, NAME, MANIFEST)
    if recipe.schedule is not None and recipe.schedule.worth is not None:
        manifest, measured = INCOMING
        about = "The set that a training would be pinned to now; rows that wait for a later night are in it."
        yield replace(preference_manifest(recipe), name=manifest, description=about)
        yield measurement(recipe, measured, manifest)


def measurement(recipe: Recipe, name: str, manifest_name: str) -> Node:
    """The node of the measurement on the new rows of a manifest."""

    def request(upstream: Upstream, shard: str | None) -> NewRowsRequest:
        manifest, policy = upstream(manifest_name), upstream.get("policy_checkpoint")
        # of rounds the first one trains on the recipe's own rows, and later ones may start from the SFT checkpoint
        of_rows = policy if recipe.rounds is None else upstream.get("round_1/policy_checkpoint")
        # the policy of this very manifest is the candidate, and what it was compared with stays the champion
        trained = of_rows is not None and stands_on(upstream.store, of_rows, manifest)
        return request_of(recipe, upstream, manifest, policy if trained else None)

    return Node(
        name=name,
        phase="train",
        stage=STAGE,
        description="The champion's accuracy on preference pairs that it never saw, and the alarm of a drift.",
        kinds=frozenset({"pytorch", "parquet"}),
        needs=(manifest_name,),
        request=request,
        show=show,
        pool=recipe.pools.reference,
        guards=drift_guards(),
    )


def request_of(recipe: Recipe, upstream: Upstream, manifest: Artifact, candidate: Artifact | None) -> NewRowsRequest:
    """What to measure of the champion that a candidate is compared with, on the new rows of a manifest; raises
    `NotNeeded` without one, and where it was trained on the very rows."""
    assert recipe.evals.new_rows is not None
    champion = champion_for(upstream, candidate).policy
    if champion is None:
        raise NotNeeded("there is no champion yet")
    commit_of = upstream.store.commit_of
    if began_with(commit_of, champion).digest != upstream(recipe.start).digest:  # its rewards are beside that one
        raise NotNeeded("the champion began with another start checkpoint than the one that scored the new rows")
    known = first_manifest(commit_of, champion)
    if stands_on(upstream.store, champion, manifest):
        raise NotNeeded("the champion was trained on these rows")
    return NewRowsRequest(
        checkpoint=champion,
        manifest=manifest,
        known=known,
        max_rows=recipe.evals.new_rows.max_rows,
        sources=tuple(source.name for source in recipe.preferences.sources),
        **scoring(recipe) | {"quantise": None},  # as its own held-out pairs were measured: the checkpoint as it is
    )


def stands_on(store: Store, policy: Artifact, manifest: Artifact) -> bool:
    """Whether a policy's first training took the rows of a manifest, or, as a point of a sweep, some of them. It may
    have had the champion as its reference."""
    known = first_manifest(store.commit_of, policy)
    same: dict[str, Any] = {"train_rows": None}
    if scored_by(store.commit_of, known) is not None:
        same["references"] = {}

    def whole(pinned: Artifact) -> Any:
        return request_of_set(store, pinned).model_copy(update=same).identity()

    return known.digest == manifest.digest or whole(known) == whole(manifest)


def measured(recipe: Recipe, upstream: Upstream, candidate: Artifact) -> Artifact | None:
    """The measurement of the champion that a candidate is compared with, by its key; None where there is none, or no
    row of it was new."""
    if recipe.evals.new_rows is None:
        return None
    try:
        commit = upstream.store.find(STAGE.kind, STAGE.key(request_of(recipe, upstream, upstream(MANIFEST), candidate)))
    except NotNeeded:
        return None
    return None if commit is None or not NewRowsSummary.of(commit).measured else commit.artifact


def show(commit: Commit, folder: Path) -> Shown:
    """The finding in a sentence."""
    return Shown(markdown={"drift": " ".join(finding.sentence for finding in drift_of(NewRowsSummary.of(commit)))})
