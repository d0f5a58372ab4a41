"""Compute pools: `recipes/pools.yaml` declares them, for limits, placement and planning alike."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignment.errors import BadInput, did_you_mean
from alignment.recipe.faults import fault
from alignment.recipe.load import read_yaml
from resources.home import PROJECT

MAX_SLOTS = 1000
"""Dagster keeps a row for every slot, and accepts at most this many in one pool."""


class Kubernetes(BaseModel):
    """What a pod of this pool needs in addition to its GPUs.

    It becomes the tag `dagster-k8s/config` of the step, which Dagster's Kubernetes executor reads. The executor that is
    set here by default starts no pods and does not read it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    node_selector: dict[str, str] = {}
    """Labels that a node must have."""
    tolerations: list[dict[str, str]] = []
    """Tolerations of the pod, as Kubernetes writes them."""
    memory: str | None = None
    """Memory that the pod asks for, such as 96Gi."""
    cpu: str | None = None
    """Processors that the pod asks for, such as "12"."""


class Pool(BaseModel):
    """A kind of machine that GPU stages run on. A launch takes one slot, whatever `gpus_per_slot` is."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    slots: int = Field(ge=1, le=MAX_SLOTS, strict=True)
    """Launches that may run at once."""
    gpus_per_slot: int = Field(default=0, ge=0, strict=True)
    """GPUs that a launch uses; 0 for a pool without."""
    accelerator: str | None = None
    """Name of the GPU; people read it."""
    memory_gib: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Memory of one GPU in GiB, or of the machine for a pool without GPUs; with null `align plan` cannot say what
    fits."""
    price_per_hour: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Price of one slot in USD an hour; 0 where it is not known."""
    launcher: Literal["step", "torchrun"] = "step"
    """`step` runs the stage in the step's own process, `torchrun` in one process a GPU."""
    processes: int | None = Field(default=None, ge=1)
    """Processes that torchrun starts; null is one a GPU."""
    kubernetes: Kubernetes | None = None
    """Where a pod of this pool may run, and what it asks for."""

    @property
    def world_size(self) -> int:
        """Number of ranks that share the work of a stage; it is part of the key of a training."""
        return 1 if self.launcher == "step" else self.processes or max(self.gpus_per_slot, 1)

    def step_tags(self) -> dict[str, Any]:
        """Tags that place the launch on Kubernetes. They are tags of the step, because both launchers work where it
        runs."""
        if self.kubernetes is None:
            return {}
        amounts = {"memory": self.kubernetes.memory, "cpu": self.kubernetes.cpu}
        requests = {name: amount for name, amount in amounts.items() if amount}
        limits = {"nvidia.com/gpu": str(self.gpus_per_slot)} if self.gpus_per_slot else {}
        return {
            "dagster-k8s/config": {
                "container_config": {"resources": {"limits": limits, "requests": requests}},
                "pod_spec_config": {
                    "node_selector": self.kubernetes.node_selector,
                    "tolerations": self.kubernetes.tolerations,
                },
            }
        }


class Pools(BaseModel):
    """The file: pool name to pool."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    pools: dict[str, Pool] = Field(min_length=1)
    """The pools by name; recipes name them under `pools`."""

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
    return list(read_yaml(path, "recipe")) == ["pools"]


def load_pools(path: Path | None = None) -> Pools:
    """The pools in a file (ALIGN_POOLS, or recipes/pools.yaml); raises `BadInput` that names file and field."""
    return _read_pools(path or pools_file())


@cache
def _read_pools(path: Path) -> Pools:
    try:
        return Pools.model_validate(read_yaml(path, "pools file"))
    except ValidationError as error:
        field, told = fault(error, Pools)
        raise BadInput(told, file=str(path), field=field) from error
