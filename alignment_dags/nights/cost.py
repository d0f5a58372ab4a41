"""What a night took: what its runs made, and what was scored for its manifest before it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from datetime import datetime

import dagster as dg

from alignment.stages.stage import POLICY_LOGPROBS, ReferenceSummary
from alignment.store import Artifact, Commit, Store
from alignment.store.store import commits_of, readable_commits
from alignment_dags.nights.night import Costs, Night, Scored, night_costs
from alignment_dags.nights.records import NightBook
from alignment_dags.nights.runs import runs_since
from alignment_dags.run.workspace import MANIFEST, Workspace
from assets.building.factory import asset_step
from assets.evaluation_report import prices

# What scoring cost between the nights: the reference log-probs of tonight's manifest that others made before it.

POLICY, REFERENCES = "policy_checkpoint", "references."


def scored_between(
    store: Store,
    night: Night,
    earlier: Iterable[Night],
    manifest: Artifact | None,
    own: Collection[str],
    price_per_hour: float | None,
) -> Scored:
    """The sum over the manifest's reference artifacts that this recipe scored and no manifest tried before it holds.

    What another recipe scored of the same data is that one's cost, whenever this one took it over. `earlier` are the
    recipe's nights before this one, the latest first; `own` are the keys of what the night's runs made, which is
    counted there.
    """
    if manifest is None:
        return Scored()
    before = tried_before(store, night, earlier)
    found = references(store.commit_of(manifest))
    new = [one for key, one in found.items() if key not in before and key not in own]
    ours = [commit for commit in commits_of(store, new) if commit.environment.get("recipe") == night.recipe]
    return scored(ours, price_per_hour)


def scored(made: Collection[Commit], price_per_hour: float | None) -> Scored:
    """What these reference artifacts took; the price is None where their pool names none."""
    seconds = sum(commit.seconds for commit in made)
    summaries = [ReferenceSummary.of(commit) for commit in made]
    return Scored(
        shards=len(made),
        sequences=sum(summary.scored or 0 for summary in summaries),
        tokens=sum(summary.tokens or 0 for summary in summaries),
        seconds=round(seconds, 3),
        price=round(seconds * price_per_hour / 3600, 4) if price_per_hour and made else None,
    )


def tried_before(store: Store, night: Night, earlier: Iterable[Night]) -> set[str]:
    """Keys of the reference artifacts in the manifest that the last night stood on, whatever came of it, and in that
    of the policy trained last, which may be `align run`'s."""
    policies = sorted(
        (
            commit
            for commit in readable_commits(store, POLICY)
            if commit.environment.get("recipe") == night.recipe
            and datetime.fromisoformat(commit.started_at) < night.recorded_at.replace(microsecond=0)
        ),
        key=lambda commit: commit.started_at,
    )
    trained_on = [policy.inputs["manifest"] for policy in policies]
    manifests = commits_of(store, trained_on[-1:])
    digest = next((one.manifest for one in earlier if one.manifest is not None), None)
    if digest is not None:
        manifests += _manifests(store, digest, trained_on)
    return {key for manifest in (*manifests, *_scored_before(store, manifests)) for key in references(manifest)}


def _scored_before(store: Store, manifests: Iterable[Commit]) -> list[Commit]:
    """The first manifests, where the references are of a policy that scored their rows: a link's, or the champion."""
    scored = {key: one for manifest in manifests for key, one in references(manifest).items()}
    of_policies = [one for one in scored.values() if one.kind == POLICY_LOGPROBS]
    return commits_of(store, [commit.inputs["manifest"] for commit in commits_of(store, of_policies)])


def _manifests(store: Store, digest: str, trained_on: list[Artifact]) -> list[Commit]:
    """Those of a digest; all manifests are read only for one that nothing was trained on."""
    known = {one.key: one for one in trained_on if one.digest == digest}
    if known:
        return commits_of(store, known.values())
    return [commit for commit in readable_commits(store, MANIFEST) if commit.digest == digest]


def references(manifest: Commit) -> dict[str, Artifact]:
    """The reference artifacts that a manifest pins, by key."""
    return {one.key: one for name, one in manifest.inputs.items() if name.startswith(REFERENCES)}


log = logging.getLogger("alignment_dags.nights")


def note_costs(instance: dg.DagsterInstance, workspace: Workspace, book: NightBook, night: Night) -> Night:
    """The closed night with its costs in its record; without them, and logged, where something cannot be read."""
    if not night.runs:
        return night
    try:
        costs = costs_of(instance, workspace, book, night)
    except Exception as error:  # whatever it is, the night is over and its record stands
        log.warning("%s: the costs of the %s were not counted: %s", night.recipe, night.told, error)
        return night
    log.info("%s: %s took %s", night.recipe, night.told, costs.told())
    noted = night.model_copy(update={"costs": costs})
    book.write(noted)
    return noted


def hourly_prices(workspace: Workspace) -> dict[str, float]:
    """The price of an hour of every step that runs in a pool."""
    return {
        asset_step(workspace.recipe.name, node.name): workspace.pools[node.pool].price_per_hour
        for node in workspace.nodes
        if node.pool is not None
    }


def cost_so_far(instance: dg.DagsterInstance, workspace: Workspace, night: Night, now: datetime) -> float:
    """What the night's own runs have cost until now: the time that their steps held slots of pools, at the prices."""
    hourly = hourly_prices(workspace)
    total = 0.0
    for record in instance.get_run_records(dg.RunsFilter(tags=night.tags)):
        until = record.end_time or now.timestamp()
        for step in instance.get_run_step_stats(record.dagster_run.run_id):
            if step.start_time is not None:
                seconds = max(0.0, (step.end_time or until) - step.start_time)
                total += seconds / 3600 * hourly.get(step.step_key, 0.0)
    return total


def costs_of(instance: dg.DagsterInstance, workspace: Workspace, book: NightBook, night: Night) -> Costs:
    """What the night has made, and what was scored for it since the manifest that was tried before."""
    made = made_by(runs_since(instance, night), workspace, night.recorded_at)
    hourly = prices(workspace.recipe, workspace.pools)
    earlier = (one for one in book.latest() if one.id < night.id)
    before = scored_between(
        book.store,
        night,
        earlier,
        workspace.upstream().get(MANIFEST),
        {commit.key for commit in made},
        hourly.get("reference_logprobs"),
    )
    return night_costs(made, hourly, before)


def made_by(runs: Collection[str], workspace: Workspace, moment: datetime) -> list[Commit]:
    """The recipe's current artifacts that these Dagster runs reported, of those begun at or after a moment."""
    moment = moment.replace(microsecond=0)  # commits say the second
    upstream = workspace.upstream()
    reported = []
    for node in workspace.nodes:
        refs = upstream.refs(node.name).values() if node.partitioned else [upstream.ref(node.name)]
        reported += [ref.artifact for ref in refs if ref is not None and ref.dagster_run_id in runs]
    return [one for one in commits_of(workspace.store, reported) if datetime.fromisoformat(one.started_at) >= moment]
