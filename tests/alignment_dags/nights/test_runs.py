"""Which runs a night sees, and as what."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, WILL_RETRY_TAG

from alignment.recipe import Schedule, parse_recipe
from alignment_dags.nights.decide import RunSeen
from alignment_dags.nights.night import Night
from alignment_dags.nights.records import NightBook
from alignment_dags.nights.runs import runs_seen, runs_since
from alignment_dags.nights.tick import tick
from alignment_dags.run.workspace import Workspace
from assets.building.factory import asset_key
from resources.home import ensure_home
from resources.pools import load_pools
from resources.store import ArtifactStore

RECIPE = parse_recipe(
    {
        "name": "small",
        "base_model": {"embedded": "micro"},
        "sft": {"dataset": {"embedded": "micro"}},
        "preferences": {"embedded": "micro"},
    },
    "-",
    {},
)
TWO = datetime(2026, 11, 21, 2, tzinfo=UTC)
NIGHT = Night(recipe="small", scheduled_at=TWO, recorded_at=TWO, deadline_minutes=120)


class Runs:
    """Runs of jobs whose assets have the recipe's keys."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance

    def job(self, *nodes: str, fails: bool = False, verdict: str | None = None) -> dg.JobDefinition:
        def body() -> None:
            if fails:
                metadata = {} if verdict is None else {"verdict": verdict, "reasons": "worse by far"}
                raise dg.Failure("it broke", metadata=metadata)

        made = [dg.asset(key=asset_key("small", node))(body) for node in nodes]
        job = dg.define_asset_job("job", selection=[one.key for one in made])
        return dg.Definitions(assets=made, jobs=[job]).resolve_job_def("job")

    def add(self, *nodes: str, status: dg.DagsterRunStatus, tags: dict[str, str] | None = None) -> dg.DagsterRun:
        keys = frozenset(asset_key("small", node) for node in nodes)
        job = self.job(*nodes)
        location = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "repository")
        return self.instance.create_run_for_job(
            job,
            status=status,
            tags=tags or {},
            asset_selection=keys,
            remote_job_origin=RemoteJobOrigin(location, job.name),
        )

    def seen(self) -> list[RunSeen]:
        return runs_seen(self.instance, Workspace(RECIPE, load_pools()), NIGHT)


@pytest.fixture
def runs() -> Iterator[Runs]:
    with dg.instance_for_test() as instance:
        yield Runs(instance)


def test_others_count_while_they_are_going_and_ours_always(runs: Runs) -> None:
    runs.add("preference_shard", status=dg.DagsterRunStatus.SUCCESS)
    going = runs.add("reference_logprobs", status=dg.DagsterRunStatus.NOT_STARTED)
    runs.add("elsewhere", status=dg.DagsterRunStatus.STARTED)
    ours = runs.add("sft_checkpoint", status=dg.DagsterRunStatus.SUCCESS, tags=NIGHT.tags)
    runs.add("sft_checkpoint", status=dg.DagsterRunStatus.SUCCESS, tags={"align/night": "small/of another night"})
    assert {(run.id, *run.phases, run.state, run.mine) for run in runs.seen()} == {
        (going.run_id, "reference", "going", False),
        (ours.run_id, "base", "succeeded", True),
    }


def test_the_manifest_alone_is_no_training(runs: Runs) -> None:
    runs.add("preference_manifest", status=dg.DagsterRunStatus.STARTED, tags=NIGHT.tags)
    runs.add("preference_manifest", "policy_checkpoint", status=dg.DagsterRunStatus.STARTED)
    alone, both = runs.seen()
    assert (alone.phases, both.phases) == ({"manifest"}, {"manifest", "train"})


def test_a_crash_that_will_be_tried_again_is_going_and_its_retry_speaks_for_it(runs: Runs) -> None:
    crashed = runs.add(
        "policy_checkpoint", status=dg.DagsterRunStatus.FAILURE, tags=NIGHT.tags | {WILL_RETRY_TAG: "true"}
    )
    assert [(run.id, run.state) for run in runs.seen()] == [(crashed.run_id, "going")]
    retry = runs.add("policy_checkpoint", status=dg.DagsterRunStatus.SUCCESS, tags=NIGHT.tags)
    runs.instance.add_run_tags(crashed.run_id, {AUTO_RETRY_RUN_ID_TAG: retry.run_id})
    assert [(run.id, run.state) for run in runs.seen()] == [(retry.run_id, "succeeded")]


def test_a_second_try_was_asked_for_when_the_first_was(runs: Runs) -> None:
    crashed = runs.add("policy_checkpoint", status=dg.DagsterRunStatus.FAILURE, tags=NIGHT.tags)
    (first,) = runs.seen()
    job = runs.job("policy_checkpoint")
    retry = runs.instance.create_run_for_job(
        job, tags=NIGHT.tags, root_run_id=crashed.run_id, parent_run_id=crashed.run_id
    )
    runs.instance.add_run_tags(crashed.run_id, {AUTO_RETRY_RUN_ID_TAG: retry.run_id})
    assert [(run.id, run.asked_at) for run in runs.seen()] == [(retry.run_id, first.asked_at)]


def test_a_canceled_run_is_known_from_one_that_failed(runs: Runs) -> None:
    runs.add("policy_checkpoint", status=dg.DagsterRunStatus.CANCELED, tags=NIGHT.tags)
    runs.add("policy_checkpoint", status=dg.DagsterRunStatus.FAILURE, tags=NIGHT.tags)
    assert {(run.state, run.canceled) for run in runs.seen()} == {("failed", True), ("failed", False)}


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED])
def test_a_night_that_waits_in_a_queue_longer_than_it_may_take_is_ended_and_told_of(
    home: Path, caplog: pytest.LogCaptureFixture, status: dg.DagsterRunStatus
) -> None:
    recipe = RECIPE.model_copy(update={"schedule": Schedule(max_hours=6)})
    ensure_home()
    store, now = ArtifactStore().open(), datetime.now(UTC)
    book = NightBook(store, "small")
    night = Night(recipe="small", scheduled_at=now, recorded_at=now, deadline_minutes=120, outcome="running")
    book.add(night)
    with dg.DagsterInstance.get() as instance:
        run = Runs(instance).add("sft_checkpoint", status=status, tags=night.tags)

        workspace = Workspace(recipe, load_pools(), lambda: store)

        def look(hours: float) -> str:
            return tick(instance, workspace, now + timedelta(hours=hours), None).reason

        assert "in progress" in look(5)
        assert "ending its runs: longer than schedule.max_hours, 6 hours" in look(6.1)
        known = instance.get_run_by_id(run.run_id)
        assert known is not None
        if status == dg.DagsterRunStatus.STARTED:  # no worker of this machine has it, so that Dagster ends it
            assert known.status == dg.DagsterRunStatus.CANCELING
            assert next(book.latest()).is_open
            instance.report_run_canceled(known)
        else:
            assert known.status == dg.DagsterRunStatus.CANCELED
        assert "failed: longer than schedule.max_hours" in look(6.2)
    (closed,) = book.latest()
    assert (closed.outcome, closed.runs) == ("failed", [run.run_id])
    told = [one.getMessage() for one in caplog.records if one.name == "alignment_dags.alerts"]
    assert len(told) == 1 and "night_failed" in told[0] and "longer than schedule.max_hours" in told[0]


def test_a_run_whose_worker_was_lost_says_so(runs: Runs) -> None:
    run = runs.add("policy_checkpoint", status=dg.DagsterRunStatus.STARTED, tags=NIGHT.tags)
    runs.instance.report_run_failed(run, "process 1@1.00 is gone")
    (seen,) = runs.seen()
    assert (seen.state, seen.told) == ("failed", "process 1@1.00 is gone")


def test_a_run_whose_worker_was_lost_after_its_last_step_did_its_work(runs: Runs) -> None:
    keys = [asset_key("small", "preference_manifest")]
    done = runs.job("preference_manifest").execute_in_process(
        instance=runs.instance, tags=NIGHT.tags, asset_selection=keys
    )
    runs.instance.report_run_failed(done.dagster_run, "process 1@1.00 is gone")
    assert [run.state for run in runs.seen()] == ["succeeded"]


@pytest.mark.parametrize(("verdict", "told"), [(None, "it broke"), ("fail", "worse by far")])
def test_a_failed_step_says_why_and_the_gate_its_verdict(runs: Runs, verdict: str | None, told: str) -> None:
    job = runs.job("registered_model", fails=True, verdict=verdict)
    keys = [asset_key("small", "registered_model")]
    job.execute_in_process(instance=runs.instance, tags=NIGHT.tags, raise_on_error=False, asset_selection=keys)
    (seen,) = runs.seen()
    assert (seen.state, seen.verdict) == ("failed", verdict)
    assert told in seen.told


def test_runs_since_the_night_began_are_everybodys(runs: Runs) -> None:
    run = runs.add("preference_shard", status=dg.DagsterRunStatus.SUCCESS)
    ahead = NIGHT.model_copy(update={"recorded_at": datetime(2100, 1, 1, tzinfo=UTC)})
    assert runs_since(runs.instance, ahead) == set()
    earlier = NIGHT.model_copy(update={"recorded_at": datetime(2020, 1, 1, tzinfo=UTC)})
    assert runs_since(runs.instance, earlier) == {run.run_id}
