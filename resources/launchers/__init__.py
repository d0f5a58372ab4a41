"""Launchers: one interface, and one file for each kind of process that a stage runs in."""

from resources.launchers.launcher import Launch, Launcher, StepLauncher
from resources.launchers.torchrun import TorchrunLauncher
from resources.pools import Pool

__all__ = ["Launch", "Launcher", "launcher_for"]


def launcher_for(pool: Pool) -> Launcher:
    """The launcher that a pool asks for."""
    return TorchrunLauncher() if pool.launcher == "torchrun" else StepLauncher()
