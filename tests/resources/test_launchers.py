"""Launchers start one program for each key, wherever it runs, and say in one line what a person has to mend.

Dagster reads the annotations of an asset's function, so this file has them evaluated.
"""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from ray.job_submission import JobStatus

from alignment.data.files import pin_file
from alignment.errors import BadInput, chain
from alignment.stages.preference_shard import STAGE, ShardRequest
from alignment.store import Commit, Store
from resources.home import PROJECT
from resources.launchers import Launch, launcher_for
from resources.launchers.launcher import Program, ProgramLauncher, failure_of, interruption_behind
from resources.pools import Pool
from tests.loopback import free_port
from tests.resources.kubernetes_api import Api, kubernetes_api

H100 = {"slots": 1, "gpus_per_slot": 8, "accelerator": "NVIDIA-H100-80GB-HBM3"}


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with kubernetes_api(tmp_path) as api:
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
        monkeypatch.setattr("resources.launchers.kubernetes.POLL", 0.1)
        monkeypatch.setattr("resources.launchers.kuberay.POLL", 0.1)
        yield api


@pytest.fixture
def request_of_pairs(tmp_path: Path) -> ShardRequest:
    rows = [{"prompt": f"q{number}", "chosen": "yes", "rejected": "no"} for number in range(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ShardRequest(file=pin_file(str(tmp_path / "pairs.jsonl")))


def pod_pool(**more: Any) -> Pool:
    return Pool.model_validate({"slots": 1, "launcher": "kubernetes", "kubernetes": {"image": "ours:1", **more}})


def launched(pool: Pool, request: ShardRequest, store: Store) -> tuple[list[Commit], dg.ExecuteInProcessResult]:
    """Runs the launch as a Dagster step does."""
    made: list[Commit] = []

    @dg.asset
    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        made.append(launcher_for(pool).run(Launch(STAGE, request, store, pool, context, "there")))
        return dg.MaterializeResult()

    with dg.instance_for_test() as instance:
        return made, dg.materialize([asset], instance=instance, raise_on_error=False)


def launch_of(pool: Pool, request: ShardRequest, store: Any) -> Launch:
    context: Any = SimpleNamespace(log=SimpleNamespace(warning=lambda text: None))
    return Launch(STAGE, request, store, pool, context, "there")


def error_of(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    error = event.step_failure_data.error
    assert error is not None
    return (error.cause or error).message


def test_a_pod_makes_the_artifact_and_is_gone_afterwards(
    kubernetes: Api, s3: str, request_of_pairs: ShardRequest, tmp_path: Path
) -> None:
    store = Store(f"{s3}/pods", tmp_path / "cache")
    pool = pod_pool(secrets=["store-credentials"], service_account="stages", memory="8Gi")
    (commit,), result = launched(pool, request_of_pairs, store)
    assert result.success
    assert store.find(STAGE.kind, STAGE.key(request_of_pairs)) == commit
    assert kubernetes.pods == {}
    (body,) = kubernetes.created
    assert body["metadata"]["name"].startswith("align-") and len(body["metadata"]["name"]) <= 47
    container = body["spec"]["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": "store-credentials"}}]
    assert container["resources"]["requests"] == {"memory": "8Gi"}
    assert body["spec"]["serviceAccountName"] == "stages"
    assert store.matching(store.path("launches"), "*/*") == []
    launched(pool, request_of_pairs, store)
    assert len(kubernetes.created) == 1  # what is made takes no pod


def test_two_launches_of_one_key_share_a_pod_and_a_failed_one_is_replaced(
    kubernetes: Api, s3: str, request_of_pairs: ShardRequest, tmp_path: Path
) -> None:
    from kubernetes import client, config

    from resources.launchers.kubernetes import create_unless_alive, delete

    config.load_kube_config()
    api = client.CoreV1Api()

    def body(code: str) -> dict[str, Any]:
        container = {"name": "stage", "image": "ours", "command": ["python", "-c", code]}
        return {"metadata": {"name": "align-x"}, "spec": {"containers": [container]}}

    for _ in range(2):
        first = create_unless_alive(api, "align-x", "default", body("import time; time.sleep(600)"))
    assert len(kubernetes.created) == 1
    kubernetes.pods["align-x"].end()
    second = create_unless_alive(api, "align-x", "default", body("import time; time.sleep(600)"))
    assert second != first and len(kubernetes.created) == 2
    delete(api, "align-x", "default", first)  # who waited for the failed one comes late
    assert set(kubernetes.pods) == {"align-x"}
    for _ in range(2):  # gone is no error
        delete(api, "align-x", "default", second)
    assert kubernetes.pods == {}


def test_a_cancelled_step_takes_its_pod_along_and_one_that_lost_its_api_leaves_it(
    kubernetes: Api, s3: str, request_of_pairs: ShardRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dagster._core.errors import DagsterExecutionInterruptedError
    from dagster_k8s.client import DagsterKubernetesClient

    monkeypatch.setattr("resources.launchers.launcher.PAUSE", 0)
    store, wait = Store(f"{s3}/cancelled", tmp_path / "cache"), DagsterKubernetesClient.wait_for_pod
    raised: list[BaseException] = []

    def wait_or_raise(*given: Any, **named: Any) -> None:
        if raised:
            raise raised.pop()
        wait(*given, **named)

    monkeypatch.setattr(DagsterKubernetesClient, "wait_for_pod", wait_or_raise)
    raised.append(DagsterExecutionInterruptedError())
    made, result = launched(pod_pool(), request_of_pairs, store)
    assert made == [] and not result.success and kubernetes.pods == {}

    raised.append(ConnectionError("connection refused"))
    made, result = launched(pod_pool(), request_of_pairs, store)
    assert result.success and [commit.key for commit in made] == [STAGE.key(request_of_pairs)]
    assert len(kubernetes.created) == 2  # the cancelled one's, and one that both tries have waited for


@pytest.mark.parametrize(
    ("changes", "local", "told"),
    [
        ({"image": "missing:1"}, False, r"the image or environment there has no alignment-dags"),
        ({}, True, r"a pod does not see a store in a folder of this machine"),
    ],
)
def test_what_a_person_has_to_mend_in_a_pool_is_named(
    kubernetes: Api,
    s3: str,
    request_of_pairs: ShardRequest,
    tmp_path: Path,
    changes: dict[str, str],
    local: bool,
    told: str,
) -> None:
    store = Store(str(tmp_path / "store") if local else f"{s3}/bad", tmp_path / "cache")
    made, result = launched(pod_pool(**changes), request_of_pairs, store)
    assert made == [] and kubernetes.pods == {}
    assert re.search(told, error_of(result)), error_of(result)


def test_bad_input_of_a_stage_comes_back_from_elsewhere_in_its_own_words(
    kubernetes: Api, s3: str, request_of_pairs: ShardRequest, tmp_path: Path
) -> None:
    (tmp_path / "pairs.jsonl").write_text("changed\n")
    made, result = launched(pod_pool(), request_of_pairs, Store(f"{s3}/moved", tmp_path / "cache"))
    assert made == []
    assert "pairs.jsonl" in error_of(result) and "\n" not in error_of(result).strip()


def test_an_address_with_a_password_is_not_sent_to_another_machine(request_of_pairs: ShardRequest) -> None:
    store: Any = SimpleNamespace(
        url="sftp://me:secret@host/store",
        shown="sftp://host/store",
        path=lambda *parts: "/".join(parts),
        find=lambda *_: None,
        fs=SimpleNamespace(unstrip_protocol=lambda path: path),
    )
    pool = pod_pool()
    with pytest.raises(BadInput, match=r"the address in ALIGN_STORE holds a password") as caught:
        launcher_for(pool).run(launch_of(pool, request_of_pairs, store))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (
            "[pipes] Ray job x failed with status FAILED. Message:\nJob supervisor actor died: node was terminated",
            "lost",
        ),
        ("Failed to connect to Ray at address: http://head:8265.", "lost"),
        (
            "Ray job a failed with status FAILED. Message:\nFailed to start supervisor actor a: 'The name"
            " _ray_internal_job_actor_a (namespace=SUPERVISOR) is already taken. Please use a different name'",
            "lost",
        ),
        ("pod align-x ended with Evicted, last available logs:\n…", "lost"),
        ("pod align-x was terminated: node lost or preempted, last available logs:\n", "lost"),
        ("Job entrypoint command failed with exit code 137, last available logs:\nx", "lost"),
        ("External execution process failed with code 137", "lost"),
        ("External execution process failed with code 1", "failed"),
        ("Job entrypoint command failed with exit code 1, last available logs:\nSignal 9 (SIGKILL) received", "lost"),
        ("Job entrypoint command failed with exit code 1, last available logs:\nthe judge timed out", "failed"),
        ("pod align-x ended with OOMKilled (exit code 1), last available logs:\nworker failed", "failed"),
        ("exit code 1, last available logs:\npython: No module named alignment", "bad input"),
        ('Failed: Reason="ImagePullBackOff" Message="no such image"', "bad input"),
    ],
)
def test_what_can_pass_is_tried_again_and_what_cannot_is_said(
    request_of_pairs: ShardRequest, tmp_path: Path, told: str, kind: str
) -> None:
    error = RuntimeError(told)
    found = failure_of(error, launch_of(pod_pool(), request_of_pairs, Store(str(tmp_path / "store"))))
    expected = {"lost": dg.RetryRequested, "bad input": BadInput, "failed": RuntimeError}[kind]
    assert type(found) is expected


class Failing(ProgramLauncher):
    """As a cluster that says something which no other try mends."""

    def start(self, launch: Launch, program: Program) -> None:
        raise RuntimeError("not what a cluster says of a lost node")

    def stop(self, launch: Launch, program: Program) -> None: ...


def test_what_a_cluster_says_is_raised_as_it_is_and_is_not_its_own_cause(
    request_of_pairs: ShardRequest, tmp_path: Path
) -> None:
    launch = launch_of(pod_pool(), request_of_pairs, Store(str(tmp_path / "store")))
    with pytest.raises(RuntimeError, match="not what a cluster says of a lost node") as told:
        Failing().run(launch)
    assert list(chain(told.value)) == [told.value]


class TwiceInterrupted(ProgramLauncher):
    """As Ctrl-C on a terminal: one signal ends the wait, and the next one comes while the program is being stopped."""

    def __init__(self, *, fails: bool) -> None:
        self.fails = fails
        self.stopped: list[str] = []

    def start(self, launch: Launch, program: Program) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    def stop(self, launch: Launch, program: Program) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        if self.fails:
            raise ConnectionError("connection refused")
        self.stopped.append(launch.name)


@pytest.mark.parametrize("fails", [False, True])
def test_a_second_interruption_lets_the_program_be_stopped(
    request_of_pairs: ShardRequest, tmp_path: Path, fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    launcher, store = TwiceInterrupted(fails=fails), Store(str(tmp_path / "store"), tmp_path / "cache")
    names: list[str] = []

    @dg.asset
    def asset(context: dg.AssetExecutionContext) -> None:
        launch = Launch(STAGE, request_of_pairs, store, pod_pool(), context, "there")
        names.append(launch.name)
        launcher.run(launch)

    with dg.instance_for_test() as instance:
        result = dg.materialize([asset], instance=instance, raise_on_error=False)
        told = [entry.message for entry in instance.all_logs(result.run_id)]
    assert error_of(result).startswith("dagster._core.errors.DagsterExecutionInterruptedError")
    assert launcher.stopped == ([] if fails else names)
    assert any(f"{names[0]} could not be stopped and may be at work" in line for line in told) == fails
    assert store.matching(store.path("launches"), "*") == []


def test_a_cancelled_step_is_not_tried_again_because_its_client_failed_while_it_stopped() -> None:
    hidden: BaseException | None = None
    try:
        try:
            raise dg.DagsterExecutionInterruptedError
        finally:
            raise RuntimeError("Timed out waiting for ray job logs tailing thread to finish.")
    except RuntimeError as error:
        hidden = interruption_behind(error)
    assert isinstance(hidden, dg.DagsterExecutionInterruptedError)
    assert interruption_behind(RuntimeError("Timed out")) is None
    itself = RuntimeError("its own cause")
    itself.__cause__ = itself
    assert interruption_behind(itself) is None


def test_a_ray_job_asks_for_its_pools_accelerator_and_starts_torchrun_on_each_node(
    request_of_pairs: ShardRequest, tmp_path: Path
) -> None:
    from resources.launchers.ray import submission

    store = Store(str(tmp_path / "store"))
    one = Pool.model_validate(H100 | {"launcher": "ray"})
    program = Program(["-m", "alignment.stages", "x"], {"ALIGN_STORE": "s3://b"}, one)
    job = submission(launch_of(one, request_of_pairs, store), program)
    assert job["entrypoint_num_gpus"] == 8
    assert job["entrypoint_resources"] == {"accelerator_type:H100": 0.001}
    assert job["entrypoint"].split()[:5] == ["python", "-m", "alignment.stages.ranks", "--nproc-per-node", "8"]
    two = Pool.model_validate(H100 | {"launcher": "ray", "nodes": 2, "gpus_per_slot": 16})
    job = submission(launch_of(two, request_of_pairs, store), Program(program.arguments, {}, two))
    assert job["entrypoint_num_gpus"] == 8
    assert "resources.launchers.ray_nodes" in job["entrypoint"] and '"nodes": 2, "processes": 8' in job["entrypoint"]


class Races:
    """Jobs as Ray holds them. Between any two questions of a launcher other launchers and the jobs themselves move."""

    def __init__(self, seed: int) -> None:
        self.draw = Random(seed)
        self.jobs: dict[str, JobStatus] = {}
        self.submitted = 0

    def move(self) -> None:
        """Something happens elsewhere, or nothing."""
        last = next(reversed(self.jobs), None)
        what = self.draw.choice(["nothing", "end", "submit"])
        if what == "end" and last is not None and self.jobs[last] == JobStatus.RUNNING:
            self.jobs[last] = self.draw.choice([JobStatus.FAILED, JobStatus.STOPPED])
        elif what == "submit" and (last is None or self.jobs[last].is_terminal()):
            self.jobs["align-x" if last is None else f"align-x-{len(self.jobs)}"] = JobStatus.RUNNING

    def get_job_status(self, name: str) -> JobStatus:
        self.move()
        if name not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {name} does not exist.")
        return self.jobs[name]

    def submit_job(self, *, submission_id: str, **job: Any) -> str:
        self.move()
        if submission_id in self.jobs:
            raise RuntimeError(f"ValueError: Job with submission_id {submission_id} already exists.")
        assert JobStatus.RUNNING not in self.jobs.values(), "a second job of the name"
        self.jobs[submission_id] = JobStatus.RUNNING
        self.submitted += 1
        return submission_id


def forwarded_to(races: Races, name: str) -> Any:
    method = getattr(races, name)
    return lambda _, *given, **named: method(*given, **named)


def test_of_a_thousand_races_none_starts_a_second_job_or_ends_one_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.job_submission import JobSubmissionClient

    from resources.launchers.ray import OneJobAName

    monkeypatch.setattr("resources.launchers.ray.TRIES", 1000)
    for seed in range(1000):
        races = Races(seed)
        for name in ("get_job_status", "submit_job"):
            monkeypatch.setattr(JobSubmissionClient, name, forwarded_to(races, name))
        launcher = OneJobAName.__new__(OneJobAName)
        found = launcher.submit_job(submission_id="align-x", entrypoint="x")
        assert found == next(reversed(races.jobs)) and races.submitted <= 1
        assert races.jobs[found] == JobStatus.RUNNING


def test_a_dashboard_that_does_not_answer_for_a_moment_ends_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.job_submission import JobSubmissionClient

    from resources.launchers.ray import OneJobAName

    monkeypatch.setattr("resources.launchers.ray.POLL", 0.0)
    answers: list[Any] = [ConnectionError("refused"), RuntimeError("status code 500"), JobStatus.RUNNING]

    def get_job_status(*_: Any) -> JobStatus:
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    monkeypatch.setattr(JobSubmissionClient, "get_job_status", get_job_status)
    launcher = OneJobAName.__new__(OneJobAName)
    assert launcher.get_job_status("align-x") == JobStatus.RUNNING
    answers[:] = [ConnectionError("refused")]
    monkeypatch.setattr("resources.launchers.ray.PATIENCE", -1.0)
    with pytest.raises(ConnectionError):
        launcher.get_job_status("align-x")


def test_a_ray_job_of_kuberay_is_the_manifest_under_the_keys_name_and_lives_once(
    kubernetes: Api, request_of_pairs: ShardRequest, tmp_path: Path
) -> None:
    from resources.launchers.kuberay import OneRayJobAName, manifest_of

    section = {"manifest": str(PROJECT / "deploy" / "kubernetes" / "rayjob.yaml"), "namespace": "ray"}
    pool = Pool.model_validate(H100 | {"launcher": "kuberay", "kuberay": section})
    launch = launch_of(pool, request_of_pairs, Store(str(tmp_path / "store")))
    body = manifest_of(launch)
    assert body["metadata"]["name"] == launch.name and body["metadata"]["namespace"] == "ray"
    jobs = OneRayJobAName()
    jobs.create(body, "ray")
    kubernetes.ray_jobs[launch.name]["status"] = {"jobStatus": "RUNNING", "jobDeploymentStatus": "Running"}
    assert jobs.create(body, "ray")["status"]["jobStatus"] == "RUNNING"
    assert len(kubernetes.created) == 1
    kubernetes.ray_jobs[launch.name]["status"]["jobStatus"] = "FAILED"
    jobs.create(body, "ray")
    assert len(kubernetes.created) == 2
    program = Program([], {}, pool)
    for _ in range(2):  # gone is no error
        launcher_for(pool).stop(launch, program)
        assert kubernetes.ray_jobs == {}


def two_nodes(*shell: str) -> Pool:
    settings = {"hosts": ["second"], "shell": list(shell), "address": "127.0.0.1", "port": free_port()}
    return Pool.model_validate({"slots": 1, "launcher": "torchrun", "nodes": 2, "processes": 2, "torchrun": settings})


def test_two_torchrun_nodes_meet_on_loopback_and_share_a_stage(request_of_pairs: ShardRequest, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), tmp_path / "cache")
    told = tmp_path / "host"
    (commit,), result = launched(two_nodes("sh", "-c", f'echo {{host}} > "{told}"; eval "$0"'), request_of_pairs, store)
    assert result.success
    assert store.find(STAGE.kind, STAGE.key(request_of_pairs)) == commit
    assert told.read_text() == "second\n"


def test_a_node_that_fails_ends_the_launch_at_once(request_of_pairs: ShardRequest, tmp_path: Path) -> None:
    made, result = launched(
        two_nodes("false", "{host}"), request_of_pairs, Store(str(tmp_path / "store"), tmp_path / "cache")
    )
    assert made == [] and "node second ended with exit code 1" in error_of(result)
