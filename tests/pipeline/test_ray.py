"""A real Ray cluster on this machine, several nodes as processes with made-up GPUs: recipes run on it as they are.

Only the pools differ. Every job asks for a made-up H100 of its node, which the device of the work is not.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import psutil
import pytest
import yaml

from alignment.recipe import Recipe, parse_recipe
from alignment.stages.execute import JOB
from assets.building.upstream import Upstream
from resources.home import PROJECT
from resources.store import ArtifactStore
from tests.pipeline.test_interruptions import Run, wait_for_checkpoint

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster
    from ray.job_submission import JobSubmissionClient

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]

NODE = {"num_cpus": 2, "num_gpus": 1, "resources": {"accelerator_type:H100": 1}, "object_store_memory": 80_000_000}
H100 = {"slots": 2, "launcher": "ray", "gpus_per_slot": 1, "accelerator": "NVIDIA-H100-80GB-HBM3"}
POOLS = {"local": {"slots": 1}, "h100": H100, "two_nodes": H100 | {"nodes": 2, "gpus_per_slot": 2}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head that takes no work and two nodes with a GPU each; trainings on it wait while the held file is there."""
    from ray._private.authentication_test_utils import reset_auth_token_state
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        held = str(Path(__file__).with_name("held_training"))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [held, os.environ.get("PYTHONPATH")])))
        patch.setenv("TRAINING_HELD_BY", str(folder / "hold"))
        patch.setenv("SCORING_HELD_BY", str(folder / "hold_scoring"))
        reset_auth_token_state()  # an earlier test may have imported Ray, which reads the mode then
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0, "object_store_memory": 80_000_000}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                cluster.add_node(**NODE)
            patch.setenv("RAY_ADDRESS", f"http://{cluster.head_node.webui_url}")
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def jobs(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobSubmissionClient:
    """The cluster's jobs, with the pools of this file in use."""
    from ray.job_submission import JobSubmissionClient

    path = tmp_path / "pools.yaml"
    path.write_text(yaml.safe_dump({"pools": POOLS}), encoding="utf-8")
    monkeypatch.setenv("ALIGN_POOLS", str(path))
    return JobSubmissionClient(os.environ["RAY_ADDRESS"])


def on(pool: str, recipe: dict[str, Any], **more: str) -> dict[str, Any]:
    """The recipe with nothing but the names of its pools changed."""
    return recipe | {"pools": dict.fromkeys(("sft", "reference", "policy", "responses"), pool) | more}


def kill_what_the_node_ran(job: str) -> None:
    """Ends the first node's processes of a job: here a node that is lost takes along its own processes alone."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment, command = process.environ(), " ".join(process.cmdline())
            is_first = environment.get("GROUP_RANK", "0") == "0" and "--node-rank 1" not in command
            if environment.get(JOB) == job and is_first and not command.startswith("ray::"):
                process.kill()


def kill_the_other_node(cluster: Cluster, job: Any) -> None:
    """Ends a node of a launch that is not its job's, and what torchrun started there."""
    lost = next(node for node in cluster.worker_nodes if node.node_id != job.driver_node_id)
    cluster.remove_node(lost, allow_graceful=False)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(JOB) == job.submission_id and "is_host=False" in " ".join(process.cmdline()):
                for ended in [*process.children(recursive=True), process]:
                    ended.kill()


def versions(made: Upstream, recipe: Recipe) -> dict[str, str]:
    """Data version of everything that was made, by kind and key."""
    kinds = ("sft_checkpoint", "reference_logprobs", "preference_manifest", "policy_checkpoint", "responses", "scores")
    return {f"{kind}/{commit.key}": commit.digest for kind in kinds for commit in made.store.commits(kind)}


def test_a_recipe_gives_the_same_data_versions_on_the_cluster_with_only_its_pools_changed(
    jobs: JobSubmissionClient,
    small_recipe: dict[str, Any],
    bring_up_to_date: Callable[[Recipe], Upstream],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    recipe = parse_recipe(on("h100", small_recipe), "-", {})
    there = bring_up_to_date(recipe)
    made = {job.metadata["stage"] for job in jobs.list_jobs() if job.status == "SUCCEEDED"}
    assert {"reference_logprobs", "policy_checkpoint", "responses", "policy_divergence"} <= made
    for shard in ("pairs-00001-of-00002", "pairs-00002-of-00002"):
        assert there.store.commit_of(there("reference_logprobs", shard)).summary["tokens"] > 0
    found = versions(there, recipe)

    monkeypatch.setenv("ALIGN_STORE", str(tmp_path / "other"))
    here = bring_up_to_date(parse_recipe(small_recipe | {"name": "here"}, "-", {}))
    assert versions(here, recipe) == found


def test_a_run_that_is_killed_and_a_node_that_is_lost_cost_no_second_job_and_no_step(
    cluster: Cluster,
    jobs: JobSubmissionClient,
    small_recipe: dict[str, Any],
    tmp_path: Path,
    tables: None,
    align_command: list[str],
) -> None:
    """Training over two nodes: the run's process is killed and started again, then a node is killed."""
    small_recipe["dpo"] |= {"epochs": 6, "save_steps": 10}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(on("local", small_recipe, policy="two_nodes")), encoding="utf-8")
    store, hold = ArtifactStore().open(), Path(os.environ["TRAINING_HELD_BY"])

    hold.touch()
    killed = Run(align_command, path)
    wait_for_checkpoint(killed, store, 10)
    os.killpg(killed.process.pid, signal.SIGKILL)
    killed.end()
    (job,) = [job for job in jobs.list_jobs() if job.status == "RUNNING"]

    again = Run(align_command, path)
    again.wait_for("ended run")
    again.wait_for(r"policy_checkpoint …")
    again.wait_for(r"policy_checkpoint: .*step \d+/\d+")  # said by the job that the killed run had submitted
    (same,) = [one for one in jobs.list_jobs() if one.status == "RUNNING"]
    assert (same.submission_id, same.start_time) == (job.submission_id, job.start_time)
    (key,) = [one.name for one in Path(store.path("policy_checkpoint")).iterdir()]
    assert same.metadata["key"] == key

    lost = next(node for node in cluster.worker_nodes if node.node_id == job.driver_node_id)
    cluster.remove_node(lost, allow_graceful=False)
    kill_what_the_node_ran(job.submission_id)
    cluster.add_node(**NODE)
    again.wait_for("goes on in 10 s where it was")
    hold.unlink()
    assert again.end() == 0, "".join(again.lines)

    (policy,) = store.commits("policy_checkpoint")
    assert policy.summary["resumed_from_step"] == 10
    assert len(policy.summary["rows_per_rank"]) == 2 and min(policy.summary["rows_per_rank"]) > 0
    with dg.DagsterInstance.get() as instance:
        assert instance.event_log_storage.get_concurrency_info("two_nodes").active_slot_count == 0


@pytest.mark.timeout(900)
def test_a_worker_that_is_killed_in_scoring_leaves_its_share_to_the_other(
    cluster: Cluster,
    jobs: JobSubmissionClient,
    small_recipe: dict[str, Any],
    tmp_path: Path,
    tables: None,
    align_command: list[str],
) -> None:
    """Its node is lost with it: the same job goes on with the node that is left, or with a new one."""
    path = tmp_path / "recipe.yaml"
    small_recipe |= {"preferences": small_recipe["preferences"] | {"split_into": 1}}
    small_recipe["reference"] |= {"batch_tokens": 256}
    path.write_text(yaml.safe_dump(on("local", small_recipe, reference="two_nodes")), encoding="utf-8")
    store, hold = ArtifactStore().open(), Path(os.environ["SCORING_HELD_BY"])
    hold.touch()
    run = Run(align_command, path)
    while not all(hold.with_name(f"{hold.name}-{rank}").exists() for rank in range(2)):
        assert run.process.poll() is None, "".join(run.lines)
        time.sleep(0.1)
    (job,) = [job for job in jobs.list_jobs() if job.status == "RUNNING"]
    kill_the_other_node(cluster, job)
    hold.unlink()
    try:
        assert run.end() == 0, "".join(run.lines)
    finally:
        cluster.add_node(**NODE)
    made = [one for one in jobs.list_jobs() if one.metadata["key"] == job.metadata["key"]]
    assert [(one.submission_id, one.start_time) for one in made] == [(job.submission_id, job.start_time)]
    (scored,) = store.commits("reference_logprobs")
    assert scored.summary["cache_hits"] > 0, "what the lost worker had kept was not scored again"
    assert scored.summary["sequences"] == 96


def test_the_quickstart_runs_on_the_cluster_with_only_its_pools_changed(
    jobs: JobSubmissionClient,
    bring_up_to_date: Callable[[Recipe], Upstream],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """From an empty store, with less training and fewer questions than the recipe has, so that it takes minutes.

    Scoring and answering are shared by two workers, training is one's: two would sum gradients in another order.
    """
    recipe = yaml.safe_load((PROJECT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    recipe["sft"] |= {"epochs": 0.1, "eval_steps": 1000}
    recipe["optimise"] |= {"epochs": 0.1}
    recipe |= {"gate": "none"}
    recipe["evals"] |= {"batch_tokens": 1024}
    for suite in ("gsm8k", "ifeval", "mt_bench"):
        recipe["evals"][suite] |= {"limit": 24}
    pools = {"reference": "two_nodes", "responses": "two_nodes"}
    there = bring_up_to_date(parse_recipe(on("h100", recipe, **pools), "-", {}))
    for scored in there.store.commits("reference_logprobs"):
        shares = scored.summary["forwarded_per_rank"]
        assert len(shares) == 2 and min(shares) > 0.9 * max(shares)
    for answered in there.store.commits("responses"):
        assert len(answered.summary["tokens_per_rank"]) == 2 and min(answered.summary["tokens_per_rank"]) > 0
    found = versions(there, parse_recipe(recipe, "-", {}))

    monkeypatch.setenv("ALIGN_STORE", str(tmp_path / "other"))
    here = bring_up_to_date(parse_recipe(recipe | {"name": "here"}, "-", {}))
    assert versions(here, parse_recipe(recipe, "-", {})) == found


def test_cancelling_a_run_ends_its_job(
    jobs: JobSubmissionClient, small_recipe: dict[str, Any], tmp_path: Path, tables: None, align_command: list[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    small_recipe["dpo"] |= {"epochs": 6, "save_steps": 10}
    path.write_text(yaml.safe_dump(on("local", small_recipe, policy="h100")), encoding="utf-8")
    store, hold = ArtifactStore().open(), Path(os.environ["TRAINING_HELD_BY"])
    hold.touch()
    run = Run(align_command, path)
    wait_for_checkpoint(run, store, 10)
    (job,) = [job for job in jobs.list_jobs() if job.status == "RUNNING"]
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.process.stdout is not None
    told = run.process.stdout.read()
    assert run.end() == 130, told + "".join(run.lines)
    while not (status := jobs.get_job_status(job.submission_id)).is_terminal():
        time.sleep(0.1)
    assert status == "STOPPED"
    hold.unlink()


def test_a_wrong_token_is_named(
    jobs: JobSubmissionClient, small_recipe: dict[str, Any], tmp_path: Path, tables: None, align_command: list[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(on("h100", small_recipe)), encoding="utf-8")
    environment = os.environ | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [*align_command, "run", str(path), "--json"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 2, told.stderr
    assert "refuses this token: RAY_AUTH_TOKEN has to be the cluster's" in told.stdout + told.stderr
    assert environment["RAY_AUTH_TOKEN"] not in told.stdout + told.stderr
