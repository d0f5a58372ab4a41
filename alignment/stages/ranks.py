"""`python -m alignment.stages.ranks ARGUMENTS`: torchrun, which says in one line why it failed.

torchrun ends with 1 whatever became of its processes. This ends with 137 where one was killed, so that a launcher can
tell a lost process, after which another try goes on, from one that failed; with 2 for bad input; else with 1.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

BAD_INPUT = 2
RESUMES = "what its work folder holds is gone on from"


def verdict(codes: dict[int, int]) -> tuple[int, str]:
    """What to exit with and to say, from the exit codes of the ranks that ended first; minus a signal's number where
    one ended them. A killed rank counts before others, which fail because they miss it."""
    lost = {rank: -code for rank, code in codes.items() if code < 0}
    if lost:
        rank, number = min(lost.items())
        name = signal.Signals(number).name
        why = ", perhaps as the machine's memory ran out" if number == signal.SIGKILL else ""
        return 128 + number, f"process {rank + 1} was lost: {name} ended it{why}; {RESUMES} by the next run"
    if BAD_INPUT in codes.values():
        return BAD_INPUT, "bad input, see above"
    return 1, f"process {min(codes, default=0) + 1} failed, see above; {RESUMES} by the next run"


def main(arguments: list[str]) -> int:
    """Runs torchrun with these arguments; returns the exit code."""
    os.environ.setdefault("LOGLEVEL", "CRITICAL")  # torchrun's own report has many lines, and no reason in them
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options: Any = run.parse_args(arguments)
    try:
        run.run(options)
    except ChildFailedError as error:
        code, told = verdict({rank: failure.exitcode for rank, failure in error.failures.items()})
        print(f"error: {told}", file=sys.stderr)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
