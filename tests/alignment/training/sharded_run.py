"""`python -m tests.alignment.training.sharded_run STEP FILE ARGUMENTS`: `alignment.stages` as one rank of several.

It writes the bytes that the rank holds for its trained weights into FILE.RANK, and is killed in that step, if there is
one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from alignment.models.sharding import local
from alignment.stages.__main__ import main
from alignment.training.models import owners
from alignment.training.preference_trainer import CachedReferenceTrainer
from alignment.training.sft_trainer import CompletionTrainer

clip = CachedReferenceTrainer._clip_grad_norm


def held(trainer: Any) -> dict[str, int]:
    """Bytes by what they are for."""
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    tensors = list(owners(trainer.model, trainer.optimizer).values())
    state = [value for each in tensors for value in optimizer.state[each].values() if value.dim()]
    return {
        "weights": sum(local(each.detach()).nbytes for each in tensors),
        "gradients": sum(local(each.grad).nbytes for each in tensors if each.grad is not None),
        "moments": sum(local(each).nbytes for each in state),
    }


def run(killed_in: int, file: Path) -> int:
    def killed(step: Any) -> Any:
        def stepping(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            if trainer.state.global_step == killed_in:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(trainer, *args, **kwargs)

        return stepping

    def clipping(trainer: Any, model: Any) -> Any:
        if trainer.state.global_step == 1:
            rank = os.environ.get("RANK", "0")
            file.with_suffix(f".{rank}").write_text(json.dumps(held(trainer)), encoding="utf-8")
        return clip(trainer, model)

    for trainer in (CachedReferenceTrainer, CompletionTrainer):
        trainer.training_step = killed(trainer.training_step)
    CachedReferenceTrainer._clip_grad_norm = clipping  # type: ignore[method-assign]
    return main()


if __name__ == "__main__":
    killed, into = int(sys.argv[1]), Path(sys.argv[2])
    del sys.argv[1:3]
    sys.exit(run(killed, into))
