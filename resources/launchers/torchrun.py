"""torchrun through Dagster Pipes: one process a device, on the machine of the step."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import dagster as dg

from alignment.address import handed_on
from alignment.errors import BadInput
from alignment.stages.__main__ import BAD_INPUT_FILE
from alignment.store import Commit, MissingArtifact
from resources.launchers.launcher import Launch


class TorchrunLauncher:
    """Every rank runs `python -m alignment.stages`. Rank 0 commits, and the commit is then read from the store."""

    def run(self, launch: Launch) -> Commit:
        """Holds the key while the ranks work, so that no other launch builds the same artifact.

        Raises `BadInput` with the text of a rank's bad input, and `MissingArtifact` if nothing was committed.
        """
        key = launch.stage.key(launch.request)
        alone = launch.pool.world_size == 1  # then the stage holds the key itself
        with nullcontext() if alone else launch.store.building(launch.stage.kind, key):
            return launch.store.find(launch.stage.kind, key) or self._run(launch)

    def _run(self, launch: Launch) -> Commit:
        stage, request, store = launch.stage, launch.request, launch.store
        processes = launch.pool.world_size
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "request.json")
            path.write_text(request.model_dump_json(), encoding="utf-8")
            bad_input = Path(folder, "bad_input.txt")
            threads = max(1, (os.cpu_count() or 1) // processes)
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node", str(processes), "-m", "alignment.stages", stage.name]
            command += ["--request", str(path), "--cache", str(store.cache)]
            try:
                dg.PipesSubprocessClient().run(
                    command=command,
                    context=launch.context,
                    # addresses go by environment: every user of the machine can read a process's arguments
                    env={
                        "OMP_NUM_THREADS": str(threads),
                        BAD_INPUT_FILE: str(bad_input),
                        "ALIGN_STORE": store.url,
                        **handed_on(file.url for file in request.source_files()),
                    },
                )
            except dg.DagsterPipesExecutionError:
                if bad_input.exists():
                    raise BadInput(bad_input.read_text(encoding="utf-8")) from None
                raise
        commit = store.find(stage.kind, stage.key(request))
        if commit is None:
            raise MissingArtifact(f"{stage.name} ended without an error under torchrun but committed nothing")
        return commit
