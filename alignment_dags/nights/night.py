"""One night of one recipe: what its record in the store holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from alignment.errors import counted
from alignment.stages.stage import PolicySummary, ReferenceSummary, SftSummary
from alignment.store import Commit
from eval.summaries import NewRowsSummary

# What a night did, how long each stage of it took and what that cost, summed over commit records.

TRAINED: dict[str, type[SftSummary | PolicySummary]] = {
    "sft_checkpoint": SftSummary,
    "policy_checkpoint": PolicySummary,
}


class Scored(BaseModel):
    """Reference log-probs that were computed: artifacts, sequences, their tokens, seconds, and the price of these in
    USD (None where their pool names none)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: int = 0
    sequences: int = 0
    tokens: int = 0
    seconds: float = 0.0
    price: float | None = None

    def told(self) -> str:
        """In a sentence."""
        price = "" if self.price is None else f" for {self.price:.2f}"
        return (
            f"{counted(self.sequences, 'sequence')} ({counted(self.tokens, 'token')}) of"
            f" {counted(self.shards, 'shard')} scored in {self.seconds:.1f} s{price}"
        )


class Costs(BaseModel):
    """`seconds` is by stage; what was found in the store cost nothing and is not in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequences_scored: int = 0
    """Sequences whose reference log-probability was computed; those that the cache held are not counted."""
    tokens_trained: int = 0
    suites_run: int = 0
    """Suites scored, one a model."""
    seconds: dict[str, float] = {}
    price: float | None = None
    """Of what the night made in pools that name a price, in USD; None where none does."""
    between: Scored = Scored()
    """What the sensors, or people, scored before the night and no manifest tried earlier holds."""

    def told(self) -> str:
        """One line for a person."""
        parts = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items())
        told = (
            f"{counted(self.sequences_scored, 'sequence')} scored, {counted(self.tokens_trained, 'token')} trained, "
            f"{counted(self.suites_run, 'suite')} run in {sum(self.seconds.values()):.1f} s"
        )
        told += f" ({parts})" if parts else ""
        told += f" for {self.price:.2f}" if self.price is not None else ""
        return told + (f"; between the nights {self.between.told()}" if self.between.shards else "")


SCORERS = ("reference_logprobs", "policy_logprobs")


def night_costs(commits: Iterable[Commit], prices: Mapping[str, float], between: Scored) -> Costs:
    """The sum over commits, each key counted once; `prices` are those of an hour, by stage."""
    distinct = {(commit.kind, commit.key): commit for commit in commits}.values()
    seconds: Counter[str] = Counter()
    for commit in distinct:
        seconds[commit.stage] += commit.seconds  # type: ignore[assignment]
    scored = [ReferenceSummary.of(commit).scored for commit in distinct if commit.stage in SCORERS]
    trained = [TRAINED[commit.stage].of(commit).tokens for commit in distinct if commit.stage in TRAINED]
    priced = [commit.seconds * prices[commit.stage] / 3600 for commit in distinct if commit.stage in prices]
    return Costs(
        sequences_scored=sum(sequences or 0 for sequences in scored),
        tokens_trained=sum(tokens or 0 for tokens in trained),
        suites_run=sum(c.stage == "scores" for c in distinct),
        seconds={stage: round(value, 3) for stage, value in sorted(seconds.items(), key=lambda item: -item[1])},
        price=round(sum(priced), 4) if priced else None,
        between=between,
    )


class Provable(BaseModel):
    """The smallest `change` of a metric that a night could prove, on the metric's scale, with its `clusters` of items.

    `margin` is what the gate counts as no loss, and `needed` the clusters that would prove a change as large as it.
    `reports` is the number of earlier comparisons that showed the spread; without any, `change` and `needed` are None.
    They are with the champion, or (`against` is sft) with the start checkpoint, from which a policy differs more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    change: float | None
    margin: float
    clusters: int
    needed: int | None
    reports: int
    against: Literal["champion", "sft"] = "champion"
    width: float | None = None

    @property
    def is_enough(self) -> bool:
        """Whether a change as large as the margin would be proved; so it is taken to be, if no comparison with a
        champion says otherwise: else there would never be one."""
        return self.change is None or self.against == "sft" or self.change <= self.margin


class NightWorth(BaseModel):
    """What a night that trains now would have, could prove and would take.

    `seconds` is the time of slots from the manifest on, as `align plan` forecasts it, and `price` their cost in USD;
    each is None where it is not known of some stage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    new_rows: int
    """Rows to train on that the last policy was not given."""
    gone_rows: int
    """Rows that the last policy was trained or measured on and that are in the source no more."""
    trained_rows: int
    """Rows that the last policy was trained on."""
    trained_at: AwareDatetime
    provable: list[Provable] = []
    measured: NewRowsSummary | None = None
    """The champion on rows that it never saw; None unless that was measured of the rows that are new now."""
    drift_tried: bool = False
    """Whether the last training went on in spite of a red alarm, and this champion stayed."""
    refused: list[str] = []
    """Why the gate would refuse whatever is trained on these rows: its bounds on the champion's numbers on them."""
    seconds: float | None = None
    price: float | None = None


Outcome = Literal["waiting", "running", "passed", "gated", "failed", "skipped", "slept", "missed"]
OPEN: frozenset[Outcome] = frozenset({"waiting", "running"})
TAG = "align/night"
"""Dagster tag of every run that a night launches: `<recipe>/<night id>`."""


class Night(BaseModel):
    """`waiting` for its shards, `running`, or closed: `passed` (registered, or nothing to register), `gated`,
    `failed`, `skipped` (nothing changed), `slept` (what is new waits: `schedule.worth`) or `missed` (a later
    night came before it began)."""

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
    worth: NightWorth | None = None
    """What the night had and could prove when it decided whether to train; None where the recipe does not ask."""
    woke: str = ""
    """Why it trained and did not sleep; empty where the recipe does not ask, or rows were not the reason."""
    alias: str | None = None
    """What was wrong with the champion's alias when the night ended; empty if nothing was, None if nobody looked."""
    judge: str | None = None
    """What was said of the judge's retirement when the night ended; empty if nothing was, None if nobody looked."""
    elsewhere: list[str] = []
    """What the recipe uses when the night ended and other recipes have withdrawn, a sentence each."""

    @property
    def id(self) -> str:
        """Sorts by time; two nights of one clock time, where clocks go back, are two."""
        return self.scheduled_at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.outcome in OPEN

    @property
    def tags(self) -> dict[str, str]:
        """What its Dagster runs are found by."""
        return {TAG: f"{self.recipe}/{self.id}"}

    @property
    def told(self) -> str:
        """The night's name for a person."""
        return f"night of {self.scheduled_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"

    def closed(self, outcome: Outcome, reason: str, now: datetime) -> Night:
        """The night, ended so for this reason."""
        return self.model_copy(update={"outcome": outcome, "reason": reason, "ended_at": now})
