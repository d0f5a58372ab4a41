"""A RayJob of KubeRay through dagster-ray's Pipes client: the operator starts the job's cluster, and takes it away."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dagster_ray.kuberay.client import RayJobClient
from dagster_ray.kuberay.pipes import PipesKubeRayJobClient
from kubernetes.client import ApiException, CustomObjectsApi

from alignment.recipe.load import read_yaml
from resources.home import PROJECT
from resources.launchers.kubernetes import POLL, only
from resources.launchers.launcher import Launch, Program, ProgramLauncher
from resources.launchers.ray import submission

STARTUP = 3600.0  # seconds that a cluster may take: an autoscaler may have to find nodes first


class KubeRayLauncher(ProgramLauncher):
    """The job outlives the step's process; it ends early only when a person cancels the step."""

    def start(self, launch: Launch, program: Program) -> None:
        """Creates the RayJob under the key's name, or waits for the one of that name that is at work."""
        settings = launch.pool.kuberay
        assert settings is not None  # the pool has been checked
        client = PipesKubeRayJobClient(client=OneRayJobAName(), timeout=STARTUP, address=settings.address)
        submitted: Any = submission(launch, program)
        client.run(context=launch.context, ray_job=manifest_of(launch), submit_job_params=submitted)

    def stop(self, launch: Launch, program: Program) -> None:
        """Deletes the RayJob of the key's name, and with it its cluster."""
        settings = launch.pool.kuberay
        assert settings is not None
        client = OneRayJobAName()
        if known := client.get(launch.name, settings.namespace):
            client.delete_only(known)


def manifest_of(launch: Launch) -> dict[str, Any]:
    """The pool's RayJob under the launch's name; raises `BadInput` naming the file."""
    settings = launch.pool.kuberay
    assert settings is not None
    path = Path(settings.manifest)
    manifest = read_yaml(path if path.is_absolute() or path.exists() else PROJECT / path, "RayJob")
    named = manifest.get("metadata", {}) | {"name": launch.name, "namespace": settings.namespace}
    return manifest | {"metadata": named}


class OneRayJobAName(RayJobClient):  # type: ignore[misc]
    """Creates a RayJob only if none of that name is there and alive."""

    def create(self, body: dict[str, Any], namespace: str) -> Any:
        """The RayJob, whether it is new or was found; one that failed is replaced."""
        name = body["metadata"]["name"]
        while True:
            try:
                return super().create(body, namespace)
            except ApiException as error:
                if error.status != 409:
                    raise
            known = self.get(name, namespace)
            if known and is_alive(known):
                return known
            if known and "deletionTimestamp" not in known["metadata"]:
                self.delete_only(known)
            time.sleep(POLL)  # its name is free once its cluster is gone

    def delete_only(self, known: dict[str, Any]) -> None:
        """Deletes this RayJob. One that is gone, or that another launcher has replaced, is no error."""
        metadata = known["metadata"]
        api = CustomObjectsApi(api_client=self.api_client)
        place = (self.group, self.version, metadata["namespace"], self.plural, metadata["name"])
        try:
            api.delete_namespaced_custom_object(*place, body=only(metadata["uid"]))
        except ApiException as error:
            if error.status not in (404, 409):
                raise


def is_alive(ray_job: dict[str, Any]) -> bool:
    """Whether a RayJob waits or works; nothing is known yet of one that was just created."""
    status = ray_job.get("status") or {}
    ended = status.get("jobStatus") in ("SUCCEEDED", "FAILED", "STOPPED")
    failed = status.get("jobDeploymentStatus") in ("Failed", "ValidationFailed", "Complete")
    return not ended and not failed and "deletionTimestamp" not in ray_job["metadata"]
