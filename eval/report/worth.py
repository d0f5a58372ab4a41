"""What trainings are worth, as the pages show it: nights, new rows, sources, the certificate, withdrawn rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from alignment.store import Commit, Store
from alignment.store.store import readable_commits
from eval.gate.metrics import PERCENT
from eval.report.curves import Panel, panel
from eval.report.facts import day
from eval.report.guards import drift_of
from eval.summaries import NewRowsSummary

NEW_ROWS = "new_rows"
DRAWN = 60
"""Measurements that a page draws, the latest."""
LISTED = 10
CURVES = {"champion": "accuracy", "its own held-out pairs": "held_out_accuracy"}


@dataclass(frozen=True)
class NewRowsLine:
    """One measurement of a champion on rows that it never saw, as text. `rankings` is the ranking accuracy of the start
    checkpoint and of the champion; `has_drifted` is whether the alarm was red."""

    date: str
    rows: str
    accuracy: str
    interval: str
    held_out: str
    drift: str
    drift_interval: str
    rankings: str
    has_drifted: bool


@dataclass(frozen=True)
class NewRowsCourse:
    """A recipe's measurements over time: the curves, if there are two, and the latest lines first."""

    panel: Panel | None
    lines: list[NewRowsLine]


@dataclass(frozen=True)
class NightLine:
    """A night: when, what came of it, and why."""

    date: str
    outcome: str
    reason: str


@dataclass(frozen=True)
class SourceLine:
    """A source's value in one metric: the policy of all sources minus the one without it. `verdict` colours it."""

    source: str
    rows: int
    measured: str
    metric: str
    value: str
    interval: str
    corrected: str
    verdict: str


@dataclass(frozen=True)
class CertifiedLine:
    """A metric over runs with several seeds. `published` says of each published figure whether it lies among them."""

    metric: str
    mean: str
    deviation: str
    interval: str
    own: str
    noise: str
    published: list[str]


@dataclass(frozen=True)
class Worth:
    """Everything that a recipe's store says of what its trainings are worth; a part that nobody asked for is empty."""

    new_rows: NewRowsCourse | None = None
    nights: list[NightLine] = field(default_factory=list)
    sources: list[SourceLine] = field(default_factory=list)
    out_of_date: list[str] = field(default_factory=list)
    """Sources whose policy was trained on other data, or with other settings, than the last policy of all sources."""
    certificate: str = ""
    widened: str = ""
    """By what several published figures were judged."""
    certified: list[CertifiedLine] = field(default_factory=list)
    evidence: list[tuple[str, str]] = field(default_factory=list)
    """Version and sentence of each policy that was measured on rows withdrawn before its training."""


def new_rows_course(store: Store, recipe: str) -> NewRowsCourse | None:
    """The course of a recipe's champions on rows that they never saw; None where nothing was measured."""
    made = [commit for commit in readable_commits(store, NEW_ROWS) if commit.environment.get("recipe") == recipe]
    made = sorted(made, key=lambda commit: commit.started_at)
    measured = [(commit, told) for commit in made if (told := NewRowsSummary.of(commit)).measured][-DRAWN:]
    if not measured:
        return None
    return NewRowsCourse(_course(measured), [_line(*one) for one in measured[::-1][:LISTED]])


def _course(measured: Sequence[tuple[Commit, NewRowsSummary]]) -> Panel | None:
    records = [
        {"step": number} | {name: _in_percent(getattr(told, field)) for name, field in CURVES.items()}
        for number, (_, told) in enumerate(measured)
    ]
    drawn = panel("Accuracy, per cent", list(CURVES), records)
    days = dict.fromkeys(day(measured[place][0].started_at) for place in (0, -1))
    return drawn and replace(drawn, steps=f"{len(measured)} measurements, {' to '.join(days)}")


def _in_percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _line(commit: Commit, told: NewRowsSummary) -> NewRowsLine:
    return NewRowsLine(
        date=moment(commit.started_at),
        rows=f"{told.measured:,}",
        accuracy=_share(told.accuracy),
        interval=_ends(told.accuracy_low, told.accuracy_high),
        held_out=_share(told.held_out_accuracy),
        drift="–" if told.drift is None else PERCENT.format(told.drift, "+"),
        drift_interval=_ends(told.drift_low, told.drift_high, "+"),
        rankings=f"{_share(told.start_ranking_accuracy)} → {_share(told.ranking_accuracy)}",
        has_drifted=any(not finding.passed for finding in drift_of(told)),
    )


def _share(value: float | None) -> str:
    return "–" if value is None else PERCENT.format(value) + PERCENT.sign


def _ends(low: float | None, high: float | None, sign: str = "") -> str:
    return "" if low is None or high is None else f"{PERCENT.format(low, sign)} to {PERCENT.format(high, sign)}"


def moment(at: str) -> str:
    """An ISO time with its zone as people write it, to the minute, in UTC."""
    return f"{datetime.fromisoformat(at).astimezone(UTC):%-d %B %Y, %H:%M} UTC"
