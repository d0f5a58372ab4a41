"""Two processes that stay, in one process group: what several ranks make of a request, without a launch for each.

`python -m tests.alignment.training.two_processes` is one of them. It reads orders, a JSON line each, runs the stage
that an order names, and answers with a line: null, or the error. A launch takes longer than a tiny training.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from alignment.logprobs.effort import Ranks
from alignment.models.sharding import local
from alignment.stages import execute
from alignment.stages.__main__ import load_stage
from alignment.store import Commit, Store
from tests.loopback import free_port

RATE_OF_SGD = 0.05
"""Of a clipped gradient: what float32 rounds away of a weight is small beside its steps, and steps are small enough not
to make more of a difference in the next ones."""


def held(trainer: Any) -> dict[str, int]:
    """Bytes that this process holds for its trained weights, by what they are for."""
    from alignment.training.models import owners

    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    tensors = list(owners(trainer.model, trainer.optimizer).values())
    state = [value for each in tensors for value in optimizer.state[each].values() if value.dim()]
    return {
        "weights": sum(local(each.detach()).nbytes for each in tensors),
        "gradients": sum(local(each.grad).nbytes for each in tensors if each.grad is not None),
        "moments": sum(local(each).nbytes for each in state),
    }


@contextmanager
def watched(file: Path | None = None, sgd: bool = False) -> Iterator[None]:
    """Meanwhile preference training writes what the rank holds to `file`.RANK, and steps by SGD."""
    import torch

    from alignment.training.preference_trainer import CachedReferenceTrainer

    clip = CachedReferenceTrainer._clip_grad_norm

    def clipping(trainer: Any, model: Any) -> Any:
        if file is not None and trainer.state.global_step == 1:
            text = json.dumps(held(trainer))
            file.with_suffix(f".{os.environ.get('RANK', '0')}").write_text(text, encoding="utf-8")
        return clip(trainer, model)

    def stepping(trainer: Any, model: Any = None) -> Any:
        trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
        trainer.optimizer = trainer.optimizer or torch.optim.SGD(trained, RATE_OF_SGD)
        return trainer.optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedReferenceTrainer, "_clip_grad_norm", clipping)
        if sgd:
            patch.setattr(CachedReferenceTrainer, "create_optimizer", stepping)
        yield


class TwoProcesses:
    """Starts them at the first order, and anew after one of them failed."""

    def __init__(self) -> None:
        self.ranks: list[subprocess.Popen[str]] = []

    def execute(self, stage: Any, request: Any, store: Store, file: Path | None = None, sgd: bool = False) -> Commit:
        """The stage's artifact, as two ranks make it; see `watched`. Raises `AssertionError` with a rank's error."""
        if not self.ranks:
            self._start()
        order = {"stage": stage.name, "request": request.model_dump(mode="json"), "store": store.url}
        line = json.dumps(order | {"file": None if file is None else str(file), "sgd": sgd})
        for process in self.ranks:
            assert process.stdin is not None
            print(line, file=process.stdin, flush=True)
        for rank, process in enumerate(self.ranks):
            assert process.stdout is not None
            answer = process.stdout.readline()
            if answer.strip() != "null":
                self.end()  # the other one waits for it
                raise AssertionError(f"process {rank}: {json.loads(answer) if answer else 'ended'}")
        commit = store.find(stage.kind, stage.key(request))
        assert commit is not None
        return commit

    def _start(self) -> None:
        port = str(free_port())
        for rank in range(2):
            told = {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            self.ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.alignment.training.two_processes"],
                    env={**os.environ, **told, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )

    def end(self) -> None:
        """Ends both."""
        for process in self.ranks:
            process.kill()
            process.communicate()
        self.ranks = []


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints
    with Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])).together():
        for line in sys.stdin:
            order, error = json.loads(line), None
            stage = load_stage(order["stage"])
            try:
                with watched(None if order["file"] is None else Path(order["file"]), order["sgd"]):
                    execute(stage, stage.request.model_validate(order["request"]), Store(order["store"]))
            except Exception:
                error = traceback.format_exc()
            print(json.dumps(error), file=answers, flush=True)
            if not gc.get_freeze_count():  # what the first training has imported is no garbage, as in conftest.py
                gc.collect()
                gc.freeze()


if __name__ == "__main__":
    main()
