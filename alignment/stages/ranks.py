"""`python -m alignment.stages.ranks ARGUMENTS`: torchrun, which says in one line why it failed.

torchrun ends with 1 whatever became of its processes. This ends with 137 where one was killed, so that a launcher can
tell a lost process, after which another try goes on, from one that failed; with 2 for bad input; else with 1.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Any

from alignment.stages.parent import PARENT, end_with_parent

BAD_INPUT = 2
RESUMES = "what its work folder holds is gone on from"


def verdict(codes: dict[int, int]) -> tuple[int, str]:
    """What to exit with and to say, from the exit codes of the ranks that did not end well; minus a signal's number
    where one ended them.

    A killed rank counts before others, which fail because they miss it, and SIGTERM last: torchrun sends it to them.
    """
    lost = {rank: -code for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM}
    if not lost and not any(code > 0 for code in codes.values()):
        lost = {rank: -code for rank, code in codes.items()}
    if lost:
        rank, number = min(lost.items())
        name = signal.Signals(number).name
        why = ", perhaps as the machine's memory ran out" if number == signal.SIGKILL else ""
        return 128 + number, f"process {rank + 1} was lost: {name} ended it{why}; {RESUMES} by the next run"
    if BAD_INPUT in codes.values():
        return BAD_INPUT, "bad input, see above"
    failed = min(rank for rank, code in codes.items() if code > 0)
    return 1, f"process {failed + 1} failed, see above; {RESUMES} by the next run"


def main(arguments: list[str]) -> int:
    """Runs torchrun with these arguments; returns the exit code. Its processes end with it."""
    end_with_parent()
    os.environ[PARENT] = str(os.getpid())
    import torch.distributed.run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # torchrun's own report has many lines, and the reason is in none of them
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    torchrun: Any = torch.distributed.run
    options = torchrun.parse_args(arguments)
    try:
        torchrun.run(options)
    except ChildFailedError as error:
        code, told = verdict({rank: failure.exitcode for rank, failure in error.failures.items()})
        print(f"error: {told}", file=sys.stderr)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
