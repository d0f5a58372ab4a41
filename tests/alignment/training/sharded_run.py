"""`python -m tests.alignment.training.sharded_run WHAT NUMBER ARGUMENTS`: `alignment.stages` as one rank of several, of
which the second is killed: in training step NUMBER (WHAT is `step`), or when it has scored that many parts (`part`)."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from alignment.logprobs import reference
from alignment.logprobs.cache import LogprobCache
from alignment.stages.__main__ import main
from alignment.training.preference_trainer import CachedReferenceTrainer
from alignment.training.sft_trainer import CompletionTrainer

PART = 4
"""Sequences that are scored and kept at a time."""


def run(what: str, number: int) -> int:
    parts: list[int] = []

    def die(now: bool) -> None:
        if now and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(step: Any) -> Any:
        def stepping(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            die(what == "step" and trainer.state.global_step == number)
            return step(trainer, *args, **kwargs)

        return stepping

    add = LogprobCache.add_values

    def adding(cache: Any, scored: Any) -> None:
        die(what == "part" and len(parts) == number)
        parts.append(len(scored))
        add(cache, scored)

    reference.PART_SEQUENCES = PART
    LogprobCache.add_values = adding  # type: ignore[method-assign]
    for trainer in (CachedReferenceTrainer, CompletionTrainer):
        trainer.training_step = dying(trainer.training_step)
    return main()


if __name__ == "__main__":
    asked = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:3]
    sys.exit(run(*asked))
