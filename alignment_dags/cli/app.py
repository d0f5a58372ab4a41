"""The command's doors: every verb in its place, and how errors leave.

Exit 0 done, 1 the work failed or a gate said no, 2 bad input (one line on stderr).
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from alignment.errors import BadInput
from alignment_dags.cli.files import compare, judge, reference, score
from alignment_dags.cli.models import gc, lineage, promote, report
from alignment_dags.cli.prefs import prefs
from alignment_dags.cli.running import backfill, nights, plan, run
from alignment_dags.cli.setup import pools, recipes
from alignment_dags.cli.unreachable import unreachable

app = typer.Typer(
    name="align",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"align {version('alignment-dags')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Keeps a language model aligned with people's preferences."""


for verb in (run, plan, backfill, reference, score, judge, compare, lineage, promote, gc, report, nights):
    app.command()(verb)
for group, name in ((prefs, "prefs"), (pools, "pools"), (recipes, "recipes")):
    app.add_typer(group, name=name)

# by name, as their modules are too heavy for a command that may not need them
FAILURES = ("MissingArtifact", "ErasedArtifact", "CorruptArtifact", "WrongEvidence", "JudgeUnavailable", "RunFailed")


def main() -> None:
    """Entry point of `align`."""
    try:
        sys.exit(app(standalone_mode=False) or 0)  # the code of a typer.Exit; commands themselves return nothing
    except typer.Abort:
        sys.exit(130)
    except BadInput as error:
        sys.exit(_refused(str(error)))
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's own: unknown option, missing argument
            if told := error.format_message():
                _refused(told)
            sys.exit(2)  # a bare group has shown its help and has nothing to add
        told = str(error) if type(error).__name__ in FAILURES else unreachable(error)
        if told is not None:
            print(f"error: {' '.join(told.split())}", file=sys.stderr)
            sys.exit(1)
        raise


def _refused(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2
