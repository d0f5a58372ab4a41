"""Compute pools: `recipes/pools.yaml` declares them, for limits, placement and planning alike."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from alignment.errors import BadInput, did_you_mean
from alignment.recipe.faults import fault
from alignment.recipe.load import read_yaml
from resources.home import PROJECT

MAX_SLOTS = 1000
"""Dagster keeps a row for every slot, and accepts at most this many in one pool."""


class Section(BaseModel):
    """A part of the pools file: unknown keys are refused by name, values do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Torchrun(Section):
    """Settings of the launcher `torchrun` for a pool of several nodes."""

    hosts: tuple[str, ...] = ()
    """The other nodes, one host name each; the step's own machine is the first node. Each has this project at the same
    path, and reaches the store."""
    shell: tuple[str, ...] = ("ssh", "-tt", "-o", "BatchMode=yes", "{host}")
    """Command that runs a line of shell on a host; {host} stands for its name."""
    address: str | None = None
    """Name under which the other nodes reach the first one; null is its own host name."""
    port: int = Field(default=29400, ge=1, le=65535)
    """Port on the first node at which the nodes meet; two launches at once need pools with different ports."""


class Ray(Section):
    """Settings of the launcher `ray`, and what a node of `kuberay` takes. A token is read from RAY_AUTH_TOKEN, with
    RAY_AUTH_MODE=token, and never from this file."""

    address: str | None = None
    """Address of the cluster's dashboard, as in http://head:8265; null takes RAY_ADDRESS."""
    resources: dict[str, float] = {}
    """Resources that each node of a launch takes beside its GPUs, by Ray's names, such as {"accelerator_type:H100":
    0.001}. A pool that names its accelerator asks for that one by itself."""
    cpus: float = Field(default=1, ge=0)
    """Processors that each node of a launch takes."""
    working_dir: str | None = None
    """Folder on the cluster's nodes in which a launch starts; null is Ray's own."""


class KubeRay(Section):
    """Settings of the launcher `kuberay`: a RayJob, which brings its own cluster and takes it away at the end."""

    manifest: str
    """YAML file of the RayJob, as deploy/kubernetes/rayjob.yaml; its entry point and its name are filled in."""
    namespace: str = "default"
    """Namespace of the job."""
    address: str | None = None
    """Address of the new cluster's dashboard; null is its service in the namespace."""


class Kubernetes(Section):
    """What a pod of this pool needs in addition to its GPUs.

    With `launcher: kubernetes` a launch is a pod of this kind. With the launchers that work where the step runs it
    becomes the step's tag `dagster-k8s/config`, which Dagster's Kubernetes executor reads, and the executor that is set
    here by default does not.
    """

    node_selector: dict[str, str] = {}
    """Labels that a node must have."""
    tolerations: list[dict[str, str]] = []
    """Tolerations of the pod, as Kubernetes writes them."""
    memory: str | None = None
    """Memory that the pod asks for, such as 96Gi."""
    cpu: str | None = None
    """Processors that the pod asks for, such as "12"."""
    image: str | None = None
    """Image with this project; `launcher: kubernetes` needs it."""
    namespace: str = "default"
    """Namespace of the pod."""
    service_account: str | None = None
    """Service account of the pod."""
    secrets: tuple[str, ...] = ()
    """Secrets of the namespace whose keys become environment variables of the pod: credentials of the store, tokens.
    No value of them is read or written here."""
    shared_memory: str = "8Gi"
    """Size of /dev/shm, through which the processes of a node talk."""

    def pod_spec(self, gpus: int) -> dict[str, Any]:
        """Where a pod may run and what its first container asks for, in Kubernetes' words."""
        amounts = {"memory": self.memory, "cpu": self.cpu}
        requests = {name: amount for name, amount in amounts.items() if amount}
        limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
        return {
            "container": {"resources": {"limits": limits, "requests": requests}},
            "pod": {"node_selector": self.node_selector, "tolerations": self.tolerations},
        }


LauncherName = Literal["step", "torchrun", "ray", "kubernetes", "kuberay"]
REMOTE: tuple[LauncherName, ...] = ("ray", "kubernetes", "kuberay")
"""Launchers whose work runs elsewhere than the step."""


class Pool(Section):
    """A kind of machine that GPU stages run on. A launch takes one slot, whatever `gpus_per_slot` is."""

    slots: int = Field(ge=1, le=MAX_SLOTS, strict=True)
    """Launches that may run at once."""
    nodes: int = Field(default=1, ge=1, strict=True)
    """Machines that one launch spreads over; the launchers torchrun, ray and kuberay take more than one."""
    gpus_per_slot: int = Field(default=0, ge=0, strict=True)
    """GPUs that a launch uses, on all its nodes together; 0 for a pool without."""
    node: str | None = None
    """Name of the machine whose GPUs the slots take. Pools that name the same machine never book a GPU twice: a launch
    waits until as many GPUs as it needs are free."""
    accelerator: str | None = None
    """Name of the GPU, such as H100, H200, A100 or B200; plans and Ray read it."""
    interconnect: str | None = None
    """What joins the GPUs and the nodes, such as NVLink + InfiniBand 400 Gb/s; people read it."""
    memory_gib: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Memory of one GPU in GiB, or of the machine for a pool without GPUs; with null `align plan` cannot say what
    fits."""
    price_per_hour: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Price of one slot in USD an hour; 0 where it is not known."""
    region: str | None = None
    """Region of the machines, such as eu-west-1; null is the file's `region`. Recipes may demand one (`residency`)."""
    launcher: LauncherName = "step"
    """`step` runs the stage in the step's own process, `torchrun` in one process a GPU; `ray` as a job of a Ray
    cluster, `kubernetes` as a pod, `kuberay` as a RayJob, each with torchrun inside if there are several processes."""
    processes: int | None = Field(default=None, ge=1)
    """Processes that a launch starts on all its nodes together; null is one a GPU. The launcher `step` has one."""
    torchrun: Torchrun = Torchrun()
    """Settings of the launcher `torchrun`."""
    ray: Ray = Ray()
    """Settings of the launchers `ray` and `kuberay`."""
    kuberay: KubeRay | None = None
    """Settings of the launcher `kuberay`, which needs them."""
    kubernetes: Kubernetes | None = None
    """Where a pod of this pool may run, and what it asks for."""

    @model_validator(mode="after")
    def _launcher(self) -> Pool:
        if self.nodes > 1 and self.launcher in ("step", "kubernetes"):
            raise ValueError(f"launcher {self.launcher} works on one node: several need torchrun, ray or kuberay")
        if self.launcher == "torchrun" and len(self.torchrun.hosts) != self.nodes - 1:
            raise ValueError(
                f"{self.nodes} nodes need {self.nodes - 1} torchrun.hosts: the first node is the step's own"
            )
        for name in ("gpus_per_slot", "processes"):
            if (getattr(self, name) or 0) % self.nodes:
                raise ValueError(f"{name} {getattr(self, name)} is not divisible by the {self.nodes} nodes")
        if self.launcher == "kubernetes" and (self.kubernetes is None or not self.kubernetes.image):
            raise ValueError("launcher kubernetes needs kubernetes.image, an image with this project")
        if self.launcher == "kuberay" and self.kuberay is None:
            raise ValueError("launcher kuberay needs the section kuberay with the RayJob's manifest")
        return self

    @property
    def world_size(self) -> int:
        """Number of ranks that share the work of a stage."""
        return 1 if self.launcher == "step" else self.processes or max(self.gpus_per_slot, self.nodes)

    @property
    def processes_per_node(self) -> int:
        """Ranks on one node of a launch."""
        return self.world_size // self.nodes

    @property
    def gpus_per_node(self) -> int:
        """GPUs on one node of a launch."""
        return self.gpus_per_slot // self.nodes

    def step_tags(self) -> dict[str, Any]:
        """Tags that place the launch on Kubernetes. They are tags of the step, so they are for launchers that work
        where it runs."""
        if self.kubernetes is None or self.launcher in REMOTE:
            return {}
        spec = self.kubernetes.pod_spec(self.gpus_per_slot)
        return {"dagster-k8s/config": {"container_config": spec["container"], "pod_spec_config": spec["pod"]}}


class Pools(Section):
    """The file: pool name to pool."""

    pools: dict[str, Pool] = Field(min_length=1)
    """The pools by name; recipes name them under `pools`."""
    region: str | None = None
    """Region of this machine: of local folders, of addresses on this machine, and of pools that name none."""
    regions: dict[str, str] = {}
    """Address to its region, for the store, the tracking server, judges and endpoints, such as {"s3://our-bucket":
    eu-west-1}. Of several that an address begins with, the longest counts. Only a recipe with `residency` asks."""

    @model_validator(mode="after")
    def _same_machine(self) -> Pools:
        """Pools of one machine describe one machine."""
        first: dict[str, tuple[str, Pool]] = {}
        for name, pool in self.pools.items():
            if pool.node is None:
                continue
            other, like = first.setdefault(pool.node, (name, pool))
            for key in ("accelerator", "region"):
                if getattr(like, key) != getattr(pool, key):
                    raise ValueError(f"pools {other} and {name} are both on node {pool.node} and differ in {key}")
        return self

    def __getitem__(self, name: str) -> Pool:
        if name not in self.pools:
            known = ", ".join(sorted(self.pools))
            raise BadInput(f"no pool '{name}'; pools.yaml has {known}{did_you_mean(name, self.pools)}", field="pools")
        return self.pools[name]


def pools_file() -> Path:
    """The pools file: ALIGN_POOLS, or recipes/pools.yaml of the project."""
    return Path(os.environ.get("ALIGN_POOLS") or PROJECT / "recipes" / "pools.yaml")


def is_pools_file(path: Path) -> bool:
    """Whether a YAML file declares pools and nothing else; a recipe, which may say `pools` too, has a name at least."""
    return declares_pools(read_yaml(path, "recipe"))


def declares_pools(data: dict[str, Any]) -> bool:
    """Whether the mapping of a YAML file is that of a pools file."""
    return "pools" in data and set(data) <= set(Pools.model_fields)


def load_pools(path: Path | None = None) -> Pools:
    """The pools in a file (ALIGN_POOLS, or recipes/pools.yaml); raises `BadInput` that names file and field."""
    return _read_pools(path or pools_file())


@cache
def _read_pools(path: Path) -> Pools:
    return parse_pools(read_yaml(path, "pools file"), path)


def parse_pools(data: dict[str, Any], path: Path) -> Pools:
    """The pools in plain data; raises `BadInput` that names the file and the field."""
    try:
        return Pools.model_validate(data)
    except ValidationError as error:
        field, told = fault(error, Pools)
        raise BadInput(told, file=str(path), field=field) from error
