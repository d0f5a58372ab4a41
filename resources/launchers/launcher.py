"""The launcher interface: run a stage whose artifact is missing, and return its commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import dagster as dg

from alignment.stages import Request, Stage, execute
from alignment.store import Commit, Store
from resources.pools import Pool


@dataclass(frozen=True)
class Launch:
    """A stage to run: its request, the store for the artifact, and the pool that it runs in."""

    stage: Stage[Any]
    request: Request
    store: Store
    pool: Pool
    context: dg.AssetExecutionContext


class Launcher(Protocol):
    """Runs stages in one kind of process."""

    def run(self, launch: Launch) -> Commit:
        """Runs the stage until its artifact is committed; raises if it fails."""
        ...


# The default launcher: the stage runs in the step's own process.


class StepLauncher:
    """Starts no process of its own, so the stage ends whenever its step ends."""

    def run(self, launch: Launch) -> Commit:
        """Runs the stage in this process; raises what the stage raises."""
        return execute(launch.stage, launch.request, launch.store)
