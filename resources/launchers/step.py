"""The default launcher: the stage runs in the step's own process."""

from __future__ import annotations

from alignment.stages import execute
from alignment.store import Commit
from resources.launchers.launcher import Launch


class StepLauncher:
    """Nothing to start and nothing to lose: a killed step is a killed stage."""

    def run(self, launch: Launch) -> Commit:
        return execute(launch.stage, launch.request, launch.store)
