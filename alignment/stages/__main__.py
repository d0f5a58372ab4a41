"""`python -m alignment.stages NAME --request FILE --store URL`: one stage by hand or under a launcher.

What the store holds already is found and not made. With `--out FOLDER` the result is made again into that folder,
whatever the store holds, and compared with what was recorded; nothing is committed. Exit 0 done, 1 the work failed or
the result differs, 2 bad input.

Stages are found by entry point (group `alignment_dags.stages`), so that floors above and other
packages add theirs without this one knowing them. Requests name files by bare URLs: where a query or a user opens
one, ALIGN_ADDRESSES is a JSON list of the whole addresses.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path

import fsspec
from pydantic import ValidationError

from alignment.devices import share_launchers_gpus
from alignment.errors import BadInput
from alignment.recipe.faults import fault
from alignment.stages.execute import JOB, execute, load_stage, make_again
from alignment.stages.parent import end_with_parent
from alignment.stages.stage import Request, Result, Stage
from alignment.store import CorruptArtifact, MissingArtifact, Store

BAD_INPUT_FILE = "ALIGN_BAD_INPUT_FILE"  # URL where a launcher wants to read what a person has to mend
LOST_PEER = re.compile(r"(closed|reset) by peer|broken pipe|remote process (exited|has)", re.IGNORECASE)
"""What gloo and NCCL say where a process that they talk to is gone."""
LOGGERS = ("alignment", "eval")
"""Whose lines go to the Dagster run, as dagster.yaml has it for stages in the step's process."""


def main() -> int:
    """Runs the stage that the command line names; returns the exit code."""
    end_with_parent()
    parser = argparse.ArgumentParser(prog="python -m alignment.stages", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--request", required=True, help="a file, or the URL of one")
    parser.add_argument("--store", default=os.environ.get("ALIGN_STORE"), required="ALIGN_STORE" not in os.environ)
    parser.add_argument("--out", type=Path, help="make the result again into this folder, and commit nothing")
    parser.add_argument("--cache", type=Path, help="where what is remote is kept and built on this machine")
    arguments = parser.parse_args()
    first_here, first_rank = (os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK"))
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    in_session = first_here and not again  # Dagster takes one a step
    shown_by_step = "DAGSTER_PIPES_CONTEXT" in os.environ and JOB not in os.environ  # a job has a log of its own
    lines = logging.StreamHandler(sys.stderr)
    if not first_here or (shown_by_step and in_session):
        lines.setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[lines])
    share_launchers_gpus()
    told = os.environ.get(BAD_INPUT_FILE)
    if told and again:
        file_system, path = fsspec.core.url_to_fs(told)
        if file_system.exists(path):  # torchrun starts its processes again whatever they ended with
            return 2
    # of the first machine alone, which has the session: its first process
    with told_to_dagster() if in_session else nullcontext():
        try:
            stage, store = load_stage(arguments.name), Store(arguments.store, arguments.cache)
            request = read_request(stage, arguments.request)
            if arguments.out is not None:
                return compared(stage, request, store, make_again(stage, request, store, arguments.out))
            commit = execute(stage, request, store)
        except BadInput as error:
            print(f"error: {error}", file=sys.stderr)
            if told:  # of any rank: a launcher ends the others with it
                with fsspec.open(told, "w", encoding="utf-8") as stream:
                    stream.write(str(error))
            return 2
        except (MissingArtifact, CorruptArtifact) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except RuntimeError as error:
            if os.environ.get("WORLD_SIZE", "1") == "1" or not LOST_PEER.search(str(error)):
                raise
            print(f"error: another process of {arguments.name} was lost, which this one needs", file=sys.stderr)
            return 1
    if first_rank and not shown_by_step:
        print(commit.artifact.model_dump_json())
    return 0


def compared(stage: Stage, request: Request, store: Store, result: Result) -> int:  # type: ignore[type-arg]
    """Prints the data version of what was made again beside the recorded one; 1 where they differ, else 0."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    commit = store.find(stage.kind, stage.key(request))
    recorded = None if commit is None else commit.digest
    print(json.dumps({"kind": stage.kind, "digest": result.digest, "recorded": recorded}))
    return int(recorded not in (None, result.digest))


def read_request(stage: Stage, file: str) -> Request:  # type: ignore[type-arg]
    """The stage's request in a file or at a URL; raises `BadInput` naming it and what is wrong in it."""
    try:
        with fsspec.open(file, "r", encoding="utf-8") as stream:
            request: Request = stage.request.model_validate_json(stream.read())
        return request
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", file=file) from error
    except ValidationError as error:
        field, told = fault(error, stage.request)
        raise BadInput(told, file=file, field=field) from error


@contextmanager
def told_to_dagster() -> Iterator[None]:
    """A Dagster Pipes session where a launcher opened one, which shows the stage's log lines in the Dagster run;
    nothing at all from a plain shell."""
    if "DAGSTER_PIPES_CONTEXT" not in os.environ:
        yield
        return
    from dagster_pipes import open_dagster_pipes

    with open_dagster_pipes() as pipes:
        handlers = list(pipes.log.handlers)
        for name, handler in product(LOGGERS, handlers):
            logging.getLogger(name).addHandler(handler)
        try:
            yield
        finally:
            for name, handler in product(LOGGERS, handlers):
                logging.getLogger(name).removeHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
