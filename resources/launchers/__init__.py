"""Launchers: one interface, and one file for each kind of process that a stage runs in."""

from importlib import import_module

from alignment.errors import BadInput
from resources.launchers.launcher import Launch, Launcher, StepLauncher
from resources.launchers.torchrun import TorchrunLauncher
from resources.pools import Pool

__all__ = ["Launch", "Launcher", "launcher_for"]

CLUSTERS = {
    "ray": ("resources.launchers.ray", "RayLauncher", "ray"),
    "kuberay": ("resources.launchers.kuberay", "KubeRayLauncher", "ray,k8s"),
    "kubernetes": ("resources.launchers.kubernetes", "KubernetesLauncher", "k8s"),
}
"""Module and class of a launcher that needs more packages, and the extras of pyproject.toml that bring them."""


def launcher_for(pool: Pool) -> Launcher:
    """The launcher that a pool asks for; raises `BadInput` naming the packages that it lacks."""
    if pool.launcher == "step":
        return StepLauncher()
    if pool.launcher == "torchrun":
        return TorchrunLauncher(pool.nodes > 1)
    module, name, extras = CLUSTERS[pool.launcher]
    try:
        launcher: Launcher = getattr(import_module(module), name)()
    except ModuleNotFoundError as error:
        raise BadInput(
            f"launcher {pool.launcher} needs {error.name}: pip install 'alignment-dags[{extras}]'", field="launcher"
        ) from error
    return launcher
