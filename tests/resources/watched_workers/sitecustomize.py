"""For every Python process that finds this folder on its path: what a worker loads and keeps is written down.

WORKERS_LOG names the file, with a line for each load of a model and each thing that was kept. KILL_WORKER is the rank
that kills itself, once, as soon as it has kept something; with `node` each rank of another node than the first does,
and takes its node's torchrun along.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil


def note(what: str, names: Iterable[str]) -> None:
    """Adds lines to the log; a line of this size is written whole."""
    rank = os.environ.get("RANK", "0")
    with Path(os.environ["WORKERS_LOG"]).open("a", encoding="utf-8") as log:
        log.write("".join(f"{what} {rank} {name}\n" for name in names))


def loading(load: Callable[..., Any]) -> Callable[..., Any]:
    """The function that loads a model, and notes it."""

    def noted(*what: Any, **how: Any) -> Any:
        note("loaded", ["model"])
        return load(*what, **how)

    return noted


def kept(names: Iterable[str]) -> None:
    """Something is on the disk."""
    names = list(names)
    note("kept", names)
    if not names or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return
    killed = os.environ.get("KILL_WORKER")
    if killed == "node" and "is_host=False" in " ".join(psutil.Process(os.getppid()).cmdline()):
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    if killed == os.environ.get("RANK", "0"):
        os.kill(os.getpid(), signal.SIGKILL)


def watch() -> None:
    """Puts the notes into the modules that score and answer."""
    from alignment.generation import engine, workers
    from alignment.logprobs import cache, reference

    reference.PART_SEQUENCES = 1  # a part a pass
    engine.load_model = loading(engine.load_model)  # type: ignore[attr-defined]
    reference.load_model = loading(reference.load_model)  # type: ignore[attr-defined]
    add, append = cache.LogprobCache.add_values, workers.append_line

    def add_values(self: Any, values: Any) -> None:
        add(self, values)
        kept(key.hex() for key, *_ in values)

    def append_line(stream: Any, record: dict[str, Any]) -> None:
        append(stream, record)
        kept([record["batch"]])

    cache.LogprobCache.add_values = add_values  # type: ignore[method-assign]
    workers.append_line = append_line  # type: ignore[attr-defined]


if "WORKERS_LOG" in os.environ and "TORCHELASTIC_RUN_ID" in os.environ:
    watch()
