"""What the stages that measure say of their results, for the gate and the report, which must not reach those stages."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from alignment.errors import counted
from alignment.store import Summary

Number = int | float | None
"""A number as it was recorded; None stands for one that is not known, or not finite."""


class AnsweredCounts(BaseModel):
    """A suite's items by count: those with a whole answer, and those whose generation failed."""

    model_config = ConfigDict(frozen=True, extra="allow")

    items: int
    answered: int
    failed: int


class ResponsesSummary(Summary):
    """What `responses` says: how the checkpoint answered, suite by suite."""

    suites: dict[str, AnsweredCounts] = Field(default_factory=dict)
    tokens: int | None = None
    seconds_per_suite: dict[str, float] = Field(default_factory=dict)
    precision: str | None = None
    generator: str | None = None
    """`transformers`, or `endpoint`."""
    best_of: int | None = None
    """Answers of which each was chosen; `tokens` are then those of all, and `unscored` those without a score. Not set
    where answers are not chosen."""
    unscored: int | None = None
    tokens_per_rank: list[int] = Field(default_factory=list)
    """Tokens of prompts and answers that each process made just now, where several shared them."""


class Metric(BaseModel):
    """A mean over `n` values and its standard error, None where that is not known."""

    model_config = ConfigDict(frozen=True, extra="allow")

    value: Number
    stderr: Number = None
    n: int | None = None


class JudgeBill(BaseModel):
    """What an endpoint that judges took: questions `asked` the last time; judgments, tokens and USD of all times.

    `usd` is None where the judge names no price. `refused` says why the endpoint does not take a question. An
    endpoint that names its model has an entry `served`: the names in its answers of the last time.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    asked: int
    judgments: int | None = None
    input_tokens: int
    output_tokens: int
    usd: Number = None
    refused: dict[str, str] = Field(default_factory=dict)


class ScoresSummary(Summary):
    """What `scores` says of one suite: `n` items with a value, the metrics, and by count what has none."""

    n: int | None = None
    metrics: dict[str, Metric] = Field(default_factory=dict)
    failed: int | None = None
    missing: int | None = None
    empty: int | None = None
    judged: bool | None = None
    unparsable: int | None = None
    unjudged: int | None = None
    intervals: dict[str, list[Number]] = Field(default_factory=dict)
    judge: JudgeBill | None = None
    settings: str | None = None
    """Digest of how the suite was answered, judged and scored: scores of different settings are not compared."""
    length: dict[str, Number] = Field(default_factory=dict)
    classes: dict[str, dict[str, int]] = Field(default_factory=dict)
    left_out: list[str] = Field(default_factory=list)

    @property
    def lacking(self) -> int:
        """How many items and judgments have no value."""
        return sum(filter(None, (self.failed, self.missing, self.unparsable, self.unjudged)))

    @property
    def told_lacking(self) -> str:
        """What happened to those without a value, in words; empty where there are none."""
        counts = (
            (self.failed, "item failed", "items failed"),
            (self.missing, "item without a response", "items without a response"),
            (self.unparsable, "judgment without a rating", "judgments without a rating"),
            (self.unjudged, "answer without a judgment", "answers without a judgment"),
        )
        return ", ".join(counted(count, one, many) for count, one, many in counts if count)


class DivergenceSummary(Summary):
    """What `policy_divergence` says: KL(policy ‖ SFT) in nats a response and a token, over `prompts` - `no_room`
    responses. Without one, only these two are set."""

    prompts: int
    no_room: int = 0
    kl: Number = None
    kl_stderr: Number = None
    kl_per_token: Number = None
    kl_per_token_stderr: Number = None
    tokens_per_response: Number = None
    ended: Number = None
    """Share of the responses that ended by themselves."""
    intervals: dict[str, tuple[float, float] | None] = Field(default_factory=dict)


class RoundSummary(Summary):
    """Mean scores on `prompts` held-out prompts, and their paired difference with its 95 % interval.

    `improved` is whether the interval lies above zero; a record of an earlier version has it by the mean, so readers
    take `verdict`. `unscored` counts prompts that one side has no score for, by the reason.
    """

    round: int
    prompts: int
    before: float
    after: float
    difference: float
    low: Number = None
    high: Number = None
    p_value: Number = None
    improved: bool
    unscored: dict[str, int] = Field(default_factory=dict)
    judge_name: str = ""
    judge: dict[str, Any] = Field(default_factory=dict)

    @property
    def verdict(self) -> Literal["improved", "worse", "inconclusive"]:
        """What the interval says of the round; without an interval nothing follows."""
        if self.low is not None and self.low > 0:
            return "improved"
        return "worse" if self.high is not None and self.high < 0 else "inconclusive"


class SourceAccuracy(BaseModel):
    """The champion on the `measured` new rows of one source, and on its own held-out pairs of that source (None where
    it has none)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measured: int
    accuracy: float
    held_out_accuracy: float | None = None


class NewRowsSummary(Summary):
    """What `new_rows` says of the champion on rows that it never saw: `new` of them, of which `measured` were taken and
    not dropped by the token policy; `trained_prompts` more were left out, as it was trained on other pairs of their
    prompts. Sequences that were `scored` went through the model, `cache_hits` did not.

    `accuracy` is the share of pairs whose chosen side has the higher implicit reward, `ranking_accuracy` the same by
    the champion's own log-prob and `start_ranking_accuracy` by the start checkpoint's. `held_out_accuracy` is the
    champion's accuracy on the held-out pairs of its own training, and `drift` the accuracy minus that. Of a recipe with
    several sources both are of the sources that have held-out pairs, each with its share of the measured rows, and
    `sources` has all of them one by one. Intervals are of 95 %. Without a measured row only the counts are set.
    """

    new: int
    measured: int
    trained_prompts: int = 0
    dropped: int = 0
    cache_hits: int = 0
    scored: int = 0
    accuracy: Number = None
    accuracy_low: Number = None
    accuracy_high: Number = None
    margin: Number = None
    ranking_accuracy: Number = None
    start_ranking_accuracy: Number = None
    held_out_accuracy: Number = None
    drift: Number = None
    drift_low: Number = None
    drift_high: Number = None
    sources: dict[str, SourceAccuracy] = Field(default_factory=dict)
