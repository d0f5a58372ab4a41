"""How results and progress leave a verb: one result on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Keeps stdout for results: whatever libraries and child processes print meanwhile goes to stderr."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def tell(work: Callable[[], dict[str, Any]], as_json: bool, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    with stdout_kept():
        result = work()
    if as_json:
        print(json.dumps(result, ensure_ascii=False, sort_keys=True, allow_nan=False))
    else:
        show(result)
    return result


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def quiet() -> None:
    """Libraries' chatter off, our own progress on stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("alignment", "eval"):
        logging.getLogger(name).setLevel(logging.INFO)
