"""The launcher interface: take a stage whose artifact is missing, and come back when it is committed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import dagster as dg

from alignment.stages import Request, Stage, execute
from alignment.store import Commit, Store
from resources.pools import Pool


@dataclass(frozen=True)
class Launch:
    """A stage to run: its request, the store that takes the artifact, and the pool that gives the place."""

    stage: Stage[Any]
    request: Request
    store: Store
    pool: Pool
    context: dg.AssetExecutionContext


class Launcher(Protocol):
    """Runs a launch to its commit, or raises."""

    def run(self, launch: Launch) -> Commit: ...


# The default launcher: the stage runs in the step's own process.


class StepLauncher:
    """Nothing to start and nothing to lose: a killed step is a killed stage."""

    def run(self, launch: Launch) -> Commit:
        return execute(launch.stage, launch.request, launch.store)
