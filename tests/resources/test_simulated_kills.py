"""A thousand kills of workers, launchers and drivers, drawn by a seed: nothing is lost, and no key has a second job.

The cluster is a few fields in memory. Everything else is the real code: names of jobs, who submits and who waits, keys,
claims, commits, work folders. Whoever is killed leaves behind what it had written, and nobody cleans up after it.
"""

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from kubernetes.client import ApiException
from ray.job_submission import JobStatus, JobSubmissionClient

from alignment.stages import Context, Request, Result, Stage, execute
from alignment.store import Commit, Store
from resources.launchers.kubernetes import create_unless_alive
from resources.launchers.launcher import Launch, Program, ProgramLauncher
from resources.launchers.ray import OneJobAName
from resources.pools import Pool

PARTS = 4
KILLS = 1000
POOL = Pool.model_validate({"slots": 1, "launcher": "ray"})
NOBODY: Any = SimpleNamespace(log=SimpleNamespace(warning=lambda text: None))
"""The step's context: its warnings are not read."""


class Killed(BaseException):
    """A process that is gone: what it would have done on its way out does not happen."""


class Work(Request):
    """Anything."""

    text: str = "x"


class World:
    """One key, the jobs of its name as a cluster holds them, and the processes that ask for it."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.draw = Random(seed)
        self.store = Store(str(folder), folder.with_name(f"{folder.name}-cache"))
        self.stage = Stage("simulated", 1, Work, self._work, device="gpu")
        self.status: JobStatus | None = None
        self.fate = "lives"
        self.submitted = self.worked = self.died = self.kills = self.asking = 0
        self.parts: list[int] = []
        self.dying = False

    # The job's process.

    def submit(self) -> None:
        assert self.status is None or self.status.is_terminal(), "a second job of a name"
        self.submitted += 1
        self.status = JobStatus.PENDING
        self.fate = self.draw.choice(["lives", "lives", "part", "attempt", "reported"])

    def _work(self, request: Work, context: Context) -> Result:
        self.worked += 1
        last = self.draw.randrange(PARTS) if self.fate == "part" else PARTS
        for part in range(PARTS):
            path = context.work / f"{part}.json"
            if path.exists():
                continue
            if part >= last:
                raise self.kill()
            path.write_text(json.dumps(part))
            self.parts.append(part)
        (context.out / "parts").write_text("".join(map(str, range(PARTS))))
        if self.fate == "attempt":
            raise self.kill()
        return Result("the result")

    def kill(self) -> Killed:
        self.dying = True
        self.kills += 1
        return Killed()

    def go_on(self) -> None:
        """The job works until it is done or meets its fate, and the cluster knows of it then or later."""
        if self.status == JobStatus.PENDING:
            self.status = JobStatus.RUNNING
        elif self.status == JobStatus.RUNNING:
            name = Launch(self.stage, Work(), self.store, POOL, NOBODY, "there").name
            assert self.store.fs.exists(self.store.path("launches", name, "request.json")), "a job without its request"
            try:
                execute(self.stage, Work(), self.store)
                self.status = JobStatus.SUCCEEDED
                if self.fate == "reported":  # killed once all was done
                    self.kills += 1
                    self.status = JobStatus.FAILED
            except Killed:
                self.dying = False
                self.died += 1
                self.status = JobStatus.FAILED

    # What happens between any two questions of a launcher.

    def move(self) -> None:
        what = self.draw.choice(["job", "job", "job", "job", "driver", "another", "silence", "nothing"])
        if what == "job":
            self.go_on()
        elif what == "driver":
            raise self.kill()
        elif what == "another" and self.asking < 3:
            self.drive(patient=False)
        elif what == "silence":
            raise ConnectionError("connection refused")

    def drive(self, patient: bool = True) -> Commit | None:
        """A Dagster run with its retries; one that is not patient stays dead when it is killed."""
        self.asking += 1
        try:
            while True:
                try:
                    launch = Launch(self.stage, Work(), self.store, POOL, NOBODY, "there")
                    return self.launcher(self).run(launch)
                except dg.RetryRequested:
                    self.go_on()  # the step's pause is longer than this
                except Killed:
                    self.dying = False
                    if not patient:
                        return None
        finally:
            self.asking -= 1

    launcher: Callable[["World"], ProgramLauncher]


class Simulated(ProgramLauncher):
    """Submits by one of the real rules, and waits by asking again and again."""

    def __init__(self, world: World) -> None:
        self.world = world

    def start(self, launch: Launch, program: Program) -> None:
        self.world.move()
        self.submit(launch.name)
        while not (status := self.look()).is_terminal():
            pass
        if status != JobStatus.SUCCEEDED:
            raise RuntimeError("the node died: exit code 137")

    @abstractmethod
    def submit(self, name: str) -> None:
        """By the rule of one kind of cluster."""

    def stop(self, launch: Launch, program: Program) -> None:
        """Nobody cancels here."""

    def look(self) -> JobStatus:
        self.world.move()
        return self.world.status or JobStatus.FAILED


class ByRay(Simulated):
    def submit(self, name: str) -> None:
        client = OneJobAName.__new__(OneJobAName)
        client.world, client.name = self.world, name
        client.submit_job(submission_id=name, entrypoint="x")


def number_of(client: Any, job: str) -> int:
    """Which submission of the name it is, from 0."""
    return 0 if job == client.name else int(job.removeprefix(f"{client.name}-"))


def ray_status(client: Any, job: str) -> JobStatus:
    client.world.move()
    if (number := number_of(client, job)) >= client.world.submitted:
        raise RuntimeError("Request failed with status code 404: Job does not exist.")
    last = number == client.world.submitted - 1
    return client.world.status if last else JobStatus.FAILED


def ray_submit(client: Any, *, submission_id: str, **job: Any) -> str:
    client.world.move()
    if number_of(client, submission_id) < client.world.submitted:
        raise RuntimeError("ValueError: Job with that submission_id already exists.")
    client.world.submit()
    return submission_id


class ByKubernetes(Simulated):
    def submit(self, name: str) -> None:
        create_unless_alive(Pods(self.world), name, "default", {"metadata": {"name": name}})


class Pods:
    """The part of Kubernetes' API that a launcher asks."""

    def __init__(self, world: World) -> None:
        self.world = world

    def _pod(self) -> Any:
        phases = {JobStatus.PENDING: "Pending", JobStatus.RUNNING: "Running", JobStatus.SUCCEEDED: "Succeeded"}
        metadata = SimpleNamespace(uid=str(self.world.submitted), deletion_timestamp=None)
        phase = phases.get(self.world.status or JobStatus.FAILED, "Failed")
        return SimpleNamespace(metadata=metadata, status=SimpleNamespace(phase=phase, container_statuses=[]))

    def create_namespaced_pod(self, namespace: str, body: Any) -> Any:
        self.world.move()
        if self.world.status is not None:
            raise ApiException(status=409)
        self.world.submit()
        return self._pod()

    def list_namespaced_pod(self, namespace: str, field_selector: str) -> Any:
        self.world.move()
        return SimpleNamespace(items=[] if self.world.status is None else [self._pod()])

    def delete_namespaced_pod(self, name: str, namespace: str, body: Any) -> None:
        self.world.move()
        if self.world.status is None:
            raise ApiException(status=404)
        if body.preconditions.uid != str(self.world.submitted):
            raise ApiException(status=409)
        self.world.status = None


class ByKubeRay(Simulated):
    def submit(self, name: str) -> None:
        from resources.launchers.kuberay import OneRayJobAName

        jobs = OneRayJobAName.__new__(OneRayJobAName)
        jobs.world = self.world
        jobs.create({"metadata": {"name": name}}, "default")


def ray_job(world: World) -> dict[str, Any]:
    metadata = {"name": "x", "namespace": "default", "uid": str(world.submitted)}
    return {"metadata": metadata, "status": {"jobStatus": str((world.status or JobStatus.FAILED).value)}}


def kuberay_create(jobs: Any, body: Any, namespace: str) -> Any:
    jobs.world.move()
    if jobs.world.status is not None:
        raise ApiException(status=409)
    jobs.world.submit()
    return ray_job(jobs.world)


def kuberay_get(jobs: Any, name: str, namespace: str) -> Any:
    jobs.world.move()
    return None if jobs.world.status is None else ray_job(jobs.world)


def kuberay_delete(jobs: Any, known: dict[str, Any]) -> None:
    jobs.world.move()
    if jobs.world.status is not None and known["metadata"]["uid"] == str(jobs.world.submitted):
        jobs.world.status = None


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The clients' calls go to the world of whoever calls."""
    from dagster_ray.kuberay.client import RayJobClient

    from resources.launchers.kuberay import OneRayJobAName

    monkeypatch.setattr(JobSubmissionClient, "get_job_status", ray_status)
    monkeypatch.setattr(JobSubmissionClient, "submit_job", ray_submit)
    monkeypatch.setattr(RayJobClient, "create", kuberay_create)
    monkeypatch.setattr(RayJobClient, "get", kuberay_get)
    monkeypatch.setattr(OneRayJobAName, "delete_only", kuberay_delete)
    monkeypatch.setattr("resources.launchers.ray.POLL", 0.0)
    monkeypatch.setattr("resources.launchers.kubernetes.POLL", 0.0)
    monkeypatch.setattr("resources.launchers.kuberay.POLL", 0.0)
    return None


@pytest.mark.parametrize("launcher", [ByRay, ByKubernetes, ByKubeRay])
@pytest.mark.usefixtures("cluster")
def test_after_a_thousand_kills_nothing_is_lost_and_no_key_had_a_second_job(
    launcher: type[Simulated], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = seed = 0
    while kills < -(-KILLS // 3):
        world = World(seed, tmp_path / str(seed))
        world.launcher = launcher
        for name in ("discard", "remove_folder"):  # what a process does on its way out
            monkeypatch.setattr(world.store, name, unless_dying(world, getattr(world.store, name)))
        commit = world.drive()
        assert commit is not None and commit.digest == "the result", seed
        assert world.parts == list(range(PARTS)), f"seed {seed}: a part was lost or made twice"
        assert world.worked == 1 + world.died, f"seed {seed}: a job was at work that nobody needed"
        assert len(list(world.store.commits("simulated"))) == 1
        kills, seed = kills + world.kills, seed + 1


def unless_dying(world: World, method: Callable[..., None]) -> Callable[..., None]:
    return lambda *given: None if world.dying else method(*given)
