"""Which runs a night sees, and as what."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg
import pytest
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, WILL_RETRY_TAG

from alignment.recipe import parse_recipe
from alignment_dags.nights.decide import RunSeen
from alignment_dags.nights.night import Night
from alignment_dags.nights.runs import runs_seen, runs_since
from assets.building.factory import asset_key
from resources.pools import load_pools

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
        return self.instance.create_run_for_job(job, status=status, tags=tags or {}, asset_selection=keys)

    def seen(self) -> list[RunSeen]:
        return runs_seen(self.instance, RECIPE, load_pools(), NIGHT)


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
