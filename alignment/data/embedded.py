"""Embedded models and data: what a recipe names by `embedded: NAME` comes from the package of that entry point.

Production stages know this interface alone; the demo behind the quickstart is one such package.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, cast

from alignment.errors import BadInput

GROUP = "alignment_dags.embedded"


class Embedded(Protocol):
    """A module with these functions; what each makes depends on its arguments alone."""

    def build_model(self, out: Path, seed: int) -> None:
        """Writes a complete checkpoint folder."""

    def sft_records(self, seed: int) -> list[Any]:
        """Demonstrations in one of the forms that data files have."""

    def preference_records(self, shard_index: int, seed: int) -> list[Any]:
        """Preferences of one shard, 0-based, in one of the forms that data files have."""

    def prompt_records(self, part: int, seed: int) -> list[Any]:
        """Prompts of one part, 0-based, to sample answers to, each with what decides whether an answer is right."""

    def suite_items(self, suite: str, seed: int) -> list[Any]:
        """A suite's items in its published form."""


def embedded(name: str) -> Embedded:
    """The package of that name; raises `BadInput` naming those there are."""
    known = {point.name: point for point in entry_points(group=GROUP)}
    if name not in known:
        raise BadInput(f"nothing embedded is named '{name}'; there is {', '.join(sorted(known)) or 'nothing'}")
    return cast(Embedded, known[name].load())
