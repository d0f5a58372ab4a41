"""The Dagster runs and backfills that a night has to know of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

import dagster as dg
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, WILL_RETRY_TAG

from alignment.errors import BadInput
from alignment_dags.nights.decide import RunSeen
from alignment_dags.nights.night import Night
from alignment_dags.run.launch import RunFailed, raise_failure
from alignment_dags.run.workers import UNFINISHED
from alignment_dags.run.workspace import Workspace, job_name
from assets.building.factory import asset_key

VERDICT = "verdict"  # in the metadata of the failure of a registration that the gate refused


def runs_seen(instance: dg.DagsterInstance, workspace: Workspace, night: Night) -> list[RunSeen]:
    """This night's runs, ended or not, and what else is going on in the recipe."""
    recipe = workspace.recipe
    keys = {phase.name: {asset_key(recipe.name, node.name) for node in phase.nodes} for phase in workspace.phases}
    keys["manifest"] = {asset_key(recipe.name, node.name) for node in workspace.pinning}
    keys["measure"] = {asset_key(recipe.name, node.name) for node in workspace.measuring}
    keys["train"] -= keys["manifest"] | keys["measure"]

    def phases(chosen: Iterable[dg.AssetKey] | None, job: str | None = None) -> frozenset[str]:
        touched = set(chosen or ())
        return frozenset(
            name
            for name, wanted in keys.items()
            if touched & wanted or (not touched and job == job_name(recipe.name, name))
        )

    seen = []
    asked: dict[str, datetime] = {}  # first try of a run → when it was asked for
    for record in instance.get_run_records(dg.RunsFilter(tags=night.tags), ascending=True):
        run = record.dagster_run
        first = asked.setdefault(run.root_run_id or run.run_id, record.create_timestamp.astimezone(UTC))
        if AUTO_RETRY_RUN_ID_TAG not in run.tags:  # one that was tried again speaks through its retry
            ended = None if record.end_time is None else datetime.fromtimestamp(record.end_time, UTC)
            one = _mine(instance, run, phases(run.asset_selection, run.job_name), ended)
            seen.append(replace(one, asked_at=first))
    ours = {run.id for run in seen}
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        if run.run_id not in ours and (touched := phases(run.asset_selection, run.job_name)):
            seen.append(RunSeen(run.run_id, touched, "going"))
    for backfill in instance.get_backfills(filters=BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED])):
        if touched := phases(backfill.asset_selection):
            seen.append(RunSeen(backfill.backfill_id, touched, "going"))
    return seen


def runs_since(instance: dg.DagsterInstance, night: Night) -> set[str]:
    """Ids of all runs that were made since the night began, whoever asked for them."""
    return set(instance.get_run_ids(dg.RunsFilter(created_after=night.recorded_at)))


def _mine(instance: dg.DagsterInstance, run: dg.DagsterRun, phases: frozenset[str], ended: datetime | None) -> RunSeen:
    failed = run.status == dg.DagsterRunStatus.FAILURE
    undecided = (
        failed and instance.run_retries_enabled and WILL_RETRY_TAG not in run.tags
    )  # Dagster tags it a moment later
    if not run.is_finished or undecided or run.tags.get(WILL_RETRY_TAG) == "true":
        return RunSeen(run.run_id, phases, "going", mine=True)
    if run.is_success or died_when_done(instance, run):
        return RunSeen(run.run_id, phases, "succeeded", mine=True, ended_at=ended)
    verdict, why = gate_said(instance, run.run_id)
    told = why or failure_of(instance, run)
    canceled = run.status == dg.DagsterRunStatus.CANCELED
    return RunSeen(
        run.run_id, phases, "failed", mine=True, ended_at=ended, canceled=canceled, verdict=verdict, told=told
    )


def died_when_done(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a run's worker was lost after its last step: Dagster calls it failed, and has nothing to try again."""
    if _logged(instance, run, dg.DagsterEventType.STEP_FAILURE):
        return False
    done = {entry.step_key for entry in _logged(instance, run, dg.DagsterEventType.STEP_SUCCESS)}
    return bool(done) and len(done) >= len(run.step_keys_to_execute or run.asset_selection or ())


def _logged(instance: dg.DagsterInstance, run: dg.DagsterRun, kind: dg.DagsterEventType) -> list[dg.EventLogEntry]:
    return list(instance.all_logs(run.run_id, of_type=kind))


def gate_said(instance: dg.DagsterInstance, run_id: str) -> tuple[str | None, str]:
    """The gate's verdict and reasons, if a step failed because of them."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        assert entry.dagster_event is not None
        failure = entry.dagster_event.step_failure_data.user_failure_data
        if failure is not None and VERDICT in failure.metadata:
            reasons = failure.metadata.get("reasons")
            return str(failure.metadata[VERDICT].value), "" if reasons is None else str(reasons.value)
    return None, ""


def failure_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """Why a run failed, one line a step; what Dagster says where none did."""
    if run.status == dg.DagsterRunStatus.CANCELED:
        return f"run {run.run_id[:8]} was canceled"
    if not _logged(instance, run, dg.DagsterEventType.STEP_FAILURE):
        said = _logged(instance, run, dg.DagsterEventType.RUN_FAILURE)
        return said[-1].message if said else f"run {run.run_id[:8]} failed"
    try:
        raise_failure(instance, run.run_id)
    except (RunFailed, BadInput) as failure:
        return str(failure)
