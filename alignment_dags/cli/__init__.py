"""The `align` command. Heavy imports live inside the commands, so that `align --help` answers at once."""

from alignment_dags.cli.app import main

__all__ = ["main"]
