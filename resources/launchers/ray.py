"""A job of a Ray cluster through dagster-ray's Pipes client, with torchrun inside where there are several ranks."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

from dagster_ray.core.pipes import PipesRayJobClient
from ray.job_submission import JobSubmissionClient

from alignment.errors import BadInput
from resources.launchers.launcher import Launch, Program, ProgramLauncher
from resources.pools import Pool

ACCELERATOR = re.compile(r"[A-Z]{1,2}\d{2,4}")
"""How Ray names a GPU's kind: H100 of NVIDIA-H100-80GB-HBM3."""
REFUSED = re.compile(r"\b40[13]\b|unauth|forbidden|authentication", re.IGNORECASE)

TRIES = 10
"""Refusals after which the last one is no lost race."""
PATIENCE = 120.0  # seconds in which a dashboard has to answer again
POLL = 1.0


class RayLauncher(ProgramLauncher):
    """The job outlives the step's process; it ends early only when a person cancels the step."""

    def start(self, launch: Launch, program: Program) -> None:
        """Submits the job under the key's name, or waits for the job of that name that is running."""
        address = _address(launch)
        client = PipesRayJobClient(address=address)
        try:
            client.client = OneJobAName(address)
        except Exception as error:
            if REFUSED.search(str(error)):
                raise BadInput(
                    f"the Ray cluster at {address} refuses this token: RAY_AUTH_TOKEN has to be the cluster's",
                    field=f"pools.{launch.pool_name}",
                ) from error
            raise
        client.run(context=launch.context, submit_job_params=submission(launch, program))  # type: ignore[arg-type]

    def stop(self, launch: Launch, program: Program) -> None:
        """Stops the job of the key's name."""
        OneJobAName(_address(launch)).stop_if_there(launch.name)


def _address(launch: Launch) -> str:
    address = launch.pool.ray.address or os.environ.get("RAY_ADDRESS")
    if not address:
        raise BadInput(
            "launcher ray needs the dashboard's address: ray.address, or RAY_ADDRESS",
            field=f"pools.{launch.pool_name}",
        )
    return address


class OneJobAName(JobSubmissionClient):  # type: ignore[misc]
    """Submits a job only if none of that name is there and alive.

    Ray lets one job at a time have an id. So whoever loses a race against another launcher meets a refusal, and looks
    again. A job that has ended keeps its id, and the next one of the name gets a number: Ray goes on watching an ended
    job whose node was lost, and would tell its death of whatever has the id by then.
    """

    def submit_job(self, *, submission_id: str, **job: Any) -> str:
        """The id of the job, whether it is new or was found; `submission_id` is its name."""
        refusals: list[RuntimeError] = []
        while len(refusals) < TRIES:
            try:
                for each in ids_of(submission_id):
                    known = self._status(each)
                    if known is None:
                        return str(super().submit_job(submission_id=each, **job))
                    if not known.is_terminal():
                        return each
            except RuntimeError as error:
                refusals.append(error)
        raise refusals[-1]

    def get_job_status(self, job_id: str) -> Any:
        """The job's state. A dashboard that does not answer is asked again for a while, as the job goes on."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return super().get_job_status(job_id)
            except (RuntimeError, OSError) as error:
                if "404" in str(error) or time.monotonic() > until:
                    raise
            time.sleep(POLL)

    def stop_if_there(self, name: str) -> None:
        """Stops the job of that name, if there is one at work."""
        for each in ids_of(name):
            try:
                self.stop_job(each)
            except RuntimeError as error:
                if "404" not in str(error):
                    raise
                return

    def _status(self, name: str) -> Any:
        try:
            return self.get_job_status(name)
        except RuntimeError as error:
            if "404" in str(error):
                return None
            raise


def ids_of(name: str) -> Iterator[str]:
    """The ids of a name's jobs, one after the other."""
    yield name
    yield from (f"{name}-{number}" for number in count(1))


def submission(launch: Launch, program: Program) -> dict[str, Any]:
    """What is submitted: the first node's share of the pool, and the program that asks for the others."""
    pool = launch.pool
    runtime_env: dict[str, Any] = {"env_vars": dict(program.environment)}
    folder = f"cd {shlex.quote(pool.ray.working_dir)} && " if pool.ray.working_dir else ""
    return {
        "submission_id": launch.name,
        "entrypoint": folder + shlex.join(entrypoint(program, resources(pool))),
        "entrypoint_num_cpus": pool.ray.cpus,
        "entrypoint_num_gpus": pool.gpus_per_node,
        "entrypoint_resources": resources(pool),
        "runtime_env": runtime_env,
        "metadata": {"stage": launch.stage.name, "key": launch.key},
    }


def resources(pool: Pool) -> dict[str, float]:
    """Resources of one node of a launch beside processors and GPUs, by Ray's names."""
    named = ACCELERATOR.search(pool.accelerator or "")
    kind = {f"accelerator_type:{named[0]}": 0.001} if named and pool.gpus_per_slot else {}
    return kind | pool.ray.resources


def entrypoint(program: Program, each: dict[str, float]) -> list[str]:
    """The command of the job: the program on the node that the job is on, or the start of all nodes' programs."""
    pool = program.pool
    if pool.nodes == 1:
        return ["python", *program.python()]
    asked = {"num_cpus": pool.ray.cpus, "num_gpus": pool.gpus_per_node, "resources": each}
    settings = {"nodes": pool.nodes, "processes": pool.processes_per_node, "each": asked, "elastic": program.elastic}
    return ["python", "-m", "resources.launchers.ray_nodes", json.dumps(settings), *program.arguments]
