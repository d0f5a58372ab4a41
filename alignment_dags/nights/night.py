"""One night of one recipe: what its record in the store holds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from alignment_dags.nights.costs import Costs

Outcome = Literal["waiting", "running", "passed", "gated", "failed", "skipped", "missed"]
OPEN: frozenset[Outcome] = frozenset({"waiting", "running"})
TAG = "align/night"
"""Dagster tag of every run that a night launches: `<recipe>/<night id>`."""


class Night(BaseModel):
    """`waiting` for its shards, `running`, or closed: `passed` (registered, or nothing to register), `gated`,
    `failed`, `skipped` (nothing changed) or `missed` (a later night came before it began)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    recipe: str
    scheduled_at: AwareDatetime
    recorded_at: AwareDatetime
    """When the schedule's tick was evaluated: late if the daemon was down."""
    deadline_minutes: int
    outcome: Outcome = "waiting"
    reason: str = ""
    ended_at: AwareDatetime | None = None
    runs: list[str] = []
    """Dagster runs, in the order they were launched."""
    manifest: str | None = None
    """Data version of the manifest the night stood on."""
    left_out: dict[str, str] = {}
    """Shards that the night went without, or with earlier rows of, and why."""
    troubles: list[str] = []
    """What failed on the way without ending the night."""
    version: str | None = None
    """Model version it registered."""
    costs: Costs | None = None
    alias: str | None = None
    """What was wrong with the champion's alias when the night ended; empty if nothing was, None if nobody looked."""

    @property
    def id(self) -> str:
        """Sorts by time; two nights of one clock time, where clocks go back, are two."""
        return self.scheduled_at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")

    @property
    def is_open(self) -> bool:
        return self.outcome in OPEN

    @property
    def tags(self) -> dict[str, str]:
        return {TAG: f"{self.recipe}/{self.id}"}

    @property
    def told(self) -> str:
        """The night's name for a person."""
        return f"night of {self.scheduled_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"

    def closed(self, outcome: Outcome, reason: str, now: datetime) -> Night:
        return self.model_copy(update={"outcome": outcome, "reason": reason, "ended_at": now})
