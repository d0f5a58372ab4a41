"""The command `align`: its verbs, and how errors are shown.

Exit 0 done, 1 the work failed or a gate said no, 2 bad input (one line on stderr), 130 stopped with Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import errno
import socket
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from alignment.address import shown
from alignment.errors import BadInput, causes, one_line, require_utf8
from alignment_dags.cli.files import compare, diff, reference, score
from alignment_dags.cli.hand_over import ab, card, publish, serve
from alignment_dags.cli.judge import judge
from alignment_dags.cli.models import export, gc, lineage, path, promote, report
from alignment_dags.cli.overview import doctor, init, status
from alignment_dags.cli.prefs import prefs
from alignment_dags.cli.run import backfill, night, nights, plan, run, upgrade
from alignment_dags.cli.setup import pools, recipes
from alignment_dags.cli.stopping import INTERRUPTED, nothing_to_add, usual_handlers
from alignment_dags.cli.worth import reproduce, sources, worth

# Errors of networks and remote stores are shown in one line instead of a traceback.

LIBRARIES = frozenset(
    {"aiobotocore", "aiohttp", "botocore", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"},
)
"""Packages whose exceptions mean that another machine gave no answer, or refused."""
BUILTIN = (ConnectionError, TimeoutError, PermissionError, socket.gaierror)


def unreachable(error: BaseException) -> str | None:
    """One line that says what cannot be reached, with the store's address if it is remote; None for other errors.

    An error whose cause (`raise ... from`) is a network error counts as one.
    """
    if not any(_of_a_network(cause) for cause in causes(error)):
        return None
    first = (str(error).strip() or "no reason given").splitlines()[0]
    return f"cannot be reached: {type(error).__name__}: {first}{_store()}"


NO_NAME_OF_A_FILE = frozenset({errno.ENAMETOOLONG, errno.ELOOP})
"""What is never right about a name that a person gave, whatever the file system holds."""


def of_a_file(error: BaseException) -> str | None:
    """One line that names the file which the operating system refuses (a name too long, a folder in its place)."""
    if not isinstance(error, OSError) or error.filename is None:
        return None
    return f"{error.filename}: {error.strerror}"


def _of_a_network(error: BaseException) -> bool:
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, BUILTIN) or bool(packages & LIBRARIES)


def _store() -> str:
    from resources.home import store_url

    url = store_url()
    remote = "://" in url and not url.startswith(("file://", "local://"))
    return f" (ALIGN_STORE is {shown(url)})" if remote else ""


app = typer.Typer(
    name="align",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def show_version(wanted: bool) -> None:
    """Prints the version and ends the command, for `--version`."""
    if wanted:
        print(f"align {version('alignment-dags')}")
        raise typer.Exit


STOPPED_AT_ONCE = {"run", "backfill"}
"""Commands that begin with imports of many seconds, and that Dagster's own handlers stop after those."""


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Keeps a language model aligned with people's preferences."""
    if context.invoked_subcommand not in STOPPED_AT_ONCE:
        usual_handlers()


for verb in (
    init,
    status,
    run,
    plan,
    upgrade,
    backfill,
    reference,
    score,
    compare,
    diff,
    export,
    path,
    card,
    serve,
    publish,
    lineage,
    promote,
    gc,
    report,
    night,
    night,
    nights,
    worth,
    sources,
    reproduce,
    doctor,
):
    app.command()(verb)
for group, name in ((ab, "ab"), (judge, "judge"), (prefs, "prefs"), (pools, "pools"), (recipes, "recipes")):
    app.add_typer(group, name=name)

# by name, because their modules are too heavy for a command that may not need them
FAILURES = {"MissingArtifact", "CorruptArtifact", "WrongEvidence", "JudgeUnavailable", "RunFailed"}


def main() -> None:
    """Entry point of `align`."""
    try:
        for argument in sys.argv[1:]:
            require_utf8(argument)
        code = app(standalone_mode=False) or 0  # the code of a typer.Exit; commands return nothing
        if code == INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            print("stopped", file=sys.stderr)
        sys.exit(code)
    except typer.Abort:
        sys.exit(INTERRUPTED)
    except BadInput as error:
        sys.exit(_refused(str(error)))
    except Exception as error:
        if hasattr(error, "format_message"):  # an error of the parser: unknown option, missing argument
            if message := error.format_message():
                _refused(message)
            sys.exit(2)  # a bare group has shown its help and has nothing to add
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "Stopped" in kinds:
            nothing_to_add()
            print(error, file=sys.stderr)
            sys.exit(INTERRUPTED)
        message = str(error) if kinds & FAILURES else unreachable(error) or of_a_file(error)
        if message is not None:
            _show_error(shown(message))
            sys.exit(2 if isinstance(error, OSError) and error.errno in NO_NAME_OF_A_FILE else 1)
        raise


def _show_error(message: str) -> None:
    print(f"error: {one_line(message)}", file=sys.stderr)


def _refused(message: str) -> int:
    _show_error(message)
    return 2
