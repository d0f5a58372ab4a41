"""A pod of its own on Kubernetes, in the Pipes protocol of dagster-k8s, with torchrun inside for several GPUs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster_k8s.client import DagsterK8sError, DagsterKubernetesClient, WaitForPodState
from dagster_k8s.pipes import PipesK8sClient, build_pod_body
from kubernetes.client import ApiException, V1DeleteOptions, V1Preconditions

from alignment.errors import BadInput
from resources.launchers.launcher import LOGS, Launch, Program, ProgramLauncher

LIVE = ("Pending", "Running")
POLL = 2.0  # seconds between two questions to Kubernetes


class KubernetesLauncher(ProgramLauncher):
    """The pod outlives the step's process; it ends early only when a person cancels the step."""

    def start(self, launch: Launch, program: Program) -> None:
        """Creates the pod under the key's name, or waits for the pod of that name that is at work."""
        settings = launch.pool.kubernetes
        assert settings is not None  # the pool has been checked
        if launch.store.is_local:
            raise BadInput(
                "a pod does not see a store in a folder of this machine: ALIGN_STORE has to be a URL, as s3://bucket/x",
                field=f"pools.{launch.pool_name}.launcher",
            )
        OnePodAName(poll_interval=POLL).run_one(
            launch.context, launch.name, settings.namespace, pod_spec(launch, program), program.environment
        )

    def stop(self, launch: Launch, program: Program) -> None:
        """Deletes the pod of the key's name."""
        settings = launch.pool.kubernetes
        assert settings is not None
        OnePodAName().delete_one(launch.name, settings.namespace)


def pod_spec(launch: Launch, program: Program) -> dict[str, Any]:
    """The pod in Kubernetes' words; secrets are named, and their values are the cluster's."""
    settings = launch.pool.kubernetes
    assert settings is not None
    spec = settings.pod_spec(launch.pool.gpus_per_slot)
    container = spec["container"] | {
        "image": settings.image,
        "command": ["python", *program.python()],
        "env_from": [{"secret_ref": {"name": name}} for name in settings.secrets],
        "volume_mounts": [{"name": "shm", "mount_path": "/dev/shm"}],
    }
    memory = {"name": "shm", "empty_dir": {"medium": "Memory", "size_limit": settings.shared_memory}}
    account = {"service_account_name": settings.service_account} if settings.service_account else {}
    return {**spec["pod"], **account, "containers": [container], "volumes": [memory]}


class OnePodAName(PipesK8sClient):  # type: ignore[misc]
    """Runs a pod of a given name; dagster-k8s itself gives each pod a new one."""

    def run_one(
        self,
        context: dg.AssetExecutionContext,
        name: str,
        namespace: str,
        spec: Mapping[str, Any],
        environment: Mapping[str, str],
    ) -> None:
        """Waits until the pod has ended, with its logs and messages in the run.

        Raises `RuntimeError` that says how the pod ended, if not well.
        """
        self._load_k8s_config()
        client = DagsterKubernetesClient.production_client()
        with dg.open_pipes_session(
            context=context, context_injector=self.context_injector, message_reader=self.message_reader
        ) as session:
            body = build_pod_body(
                pod_name=name,
                image=None,
                command=None,
                env_vars={**session.get_bootstrap_env_vars(), **environment},
                base_pod_meta={"annotations": {"dagster/run": context.run.run_id}},
                base_pod_spec=spec,
            )
            uid = create_unless_alive(client.core_api, name, namespace, body)
            try:
                with self.consume_pod_logs(context=context, client=client, namespace=namespace, pod_name=name):
                    client.wait_for_pod(
                        name,
                        namespace,
                        wait_for_state=WaitForPodState.Terminated,
                        wait_timeout=0,  # a training may take days
                        wait_time_between_attempts=self.poll_interval,
                    )
            except DagsterK8sError as error:
                told = how_it_ended(client.core_api, name, namespace)
                delete(client.core_api, name, namespace, uid)
                raise RuntimeError(f"pod {name} {told}, {LOGS}:\n{error}") from error
            delete(client.core_api, name, namespace, uid)

    def delete_one(self, name: str, namespace: str) -> None:
        """Deletes the pod of that name, if there is one."""
        self._load_k8s_config()
        api = DagsterKubernetesClient.production_client().core_api
        for pod in api.list_namespaced_pod(namespace, field_selector=f"metadata.name={name}").items:
            delete(api, name, namespace, pod.metadata.uid)


def create_unless_alive(api: Any, name: str, namespace: str, body: Any) -> str:
    """The id of the pod, new or found: one of its name that is at work stays, and one that has ended is replaced."""
    while True:
        try:
            return str(api.create_namespaced_pod(namespace, body).metadata.uid)
        except ApiException as error:
            if error.status != 409:
                raise
        for pod in api.list_namespaced_pod(namespace, field_selector=f"metadata.name={name}").items:
            if pod.metadata.deletion_timestamp is None:
                if pod.status.phase in LIVE:
                    return str(pod.metadata.uid)
                delete(api, name, namespace, pod.metadata.uid)
            time.sleep(POLL)  # its name is free once Kubernetes has ended it


def how_it_ended(api: Any, name: str, namespace: str) -> str:
    """Why Kubernetes says that a pod has ended, in its own words: Evicted, OOMKilled, Error."""
    pods = api.list_namespaced_pod(namespace, field_selector=f"metadata.name={name}").items
    if not pods:
        return "was terminated: node lost or preempted"
    ends = [status.state.terminated for status in pods[0].status.container_statuses or []]
    codes = [f"{end.reason} (exit code {end.exit_code})" for end in ends if end is not None]
    return " ".join(["ended with", *filter(None, [pods[0].status.reason]), *codes])


def delete(api: Any, name: str, namespace: str, uid: str) -> None:
    """Deletes the pod of that id. One that is gone, or that another launcher has replaced, is no error."""
    try:
        api.delete_namespaced_pod(name, namespace, body=only(uid))
    except ApiException as error:
        if error.status not in (404, 409):
            raise


def only(uid: str) -> V1DeleteOptions:
    """Deletes an object if it still is the one of that id."""
    return V1DeleteOptions(preconditions=V1Preconditions(uid=uid))
