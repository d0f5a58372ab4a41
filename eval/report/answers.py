"""The items that changed most, answer lengths, and the divergence of the policy, as the report's page shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignment.store import Store
from eval.gate.compare import width_of
from eval.gate.evidence import ReportRequest
from eval.gate.metrics import Unit, headline, title_of, unit_of
from eval.gate.scores import WrongEvidence
from eval.statistics import paired_interval
from eval.suites.samples import Sample
from eval.summaries import DivergenceSummary, Number, RoundSummary

EXAMPLES = 10
"""Most gains, and most losses, that a suite shows."""
MAX_TEXT = 4000
SUMMARY = 120


@dataclass(frozen=True)
class Example:
    """An item with both answers, and what the candidate gained or lost on it. A text that was cut ends with …"""

    id: str
    difference: str
    values: str
    summary: str
    prompt: str
    baseline: str
    candidate: str


@dataclass(frozen=True)
class Examples:
    """The largest gains and losses of a suite; `gained` and `lost` count all of them."""

    suite: str
    title: str
    metric: str
    unchanged: int
    gained: int
    lost: int
    best: list[Example]
    worst: list[Example]


def examples(suite: str, baseline: Sequence[Sample], candidate: Sequence[Sample], asked: Mapping[str, str]) -> Examples:
    """The items with the largest gains and losses on the suite's main metric; `asked` has prompts by cluster."""
    metric = headline(suite, [sample.metric for sample in candidate])
    known = {sample.id: sample for sample in baseline if sample.metric == metric}
    pairs = [
        (known[sample.id], sample, sample.value - before_value)
        for sample in candidate
        if sample.metric == metric and sample.value is not None and sample.id in known
        if (before_value := known[sample.id].value) is not None
    ]
    ranked = sorted(pairs, key=lambda pair: (-pair[2], pair[0].id))
    unit = unit_of(
        width_of(suite, metric, [value for pair in pairs for value in (pair[0].value, pair[1].value) if value])
    )
    digits = 0 if unit.sign else 2

    def shown(pair: tuple[Sample, Sample, float]) -> Example:
        old, new, difference = pair
        prompt = asked.get(new.cluster, "")
        return Example(
            id=new.id,
            difference=f"{difference * unit.factor:+.{digits}f}".replace("-", "−"),
            values=f"{_value(old)} → {_value(new)}",
            summary=_shortened(" ".join(prompt.split())),
            prompt=_cut(prompt),
            baseline=_cut(old.response),
            candidate=_cut(new.response),
        )

    gains, losses = [pair for pair in ranked if pair[2] > 0], [pair for pair in reversed(ranked) if pair[2] < 0]
    return Examples(
        suite=suite,
        title=title_of(suite),
        metric=metric,
        unchanged=len(pairs) - len(gains) - len(losses),
        gained=len(gains),
        lost=len(losses),
        best=[shown(pair) for pair in gains[:EXAMPLES]],
        worst=[shown(pair) for pair in losses[:EXAMPLES]],
    )


def question(item: Mapping[str, object]) -> str:
    """The question of an item; several turns are numbered."""
    turns = item.get("turns")
    if isinstance(turns, list):
        return str(turns[0]) if len(turns) == 1 else "\n\n".join(f"{n}. {turn}" for n, turn in enumerate(turns, 1))
    return str(item.get("question", item.get("prompt", "")))


def _value(sample: Sample) -> str:
    return f"{sample.value:g}"


def _shortened(text: str) -> str:
    """The beginning of a text, up to the end of a word."""
    if len(text) <= SUMMARY:
        return text
    return f"{text[:SUMMARY].rsplit(' ', 1)[0].rstrip(' ,.;:')} …"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} …"


# The length of the answers: judges often prefer longer answers.

WORDS = Unit(1.0, 1, "words", "")


@dataclass(frozen=True)
class Length:
    """Mean words per answer on a suite, over the items that both models answered; the change with its interval."""

    title: str
    n: int
    baseline: str
    candidate: str
    change: str
    interval: str


def length(suite: str, baseline: Sequence[Sample], candidate: Sequence[Sample]) -> Length | None:
    """The lengths on a suite in words; None if the models have no answered item in common."""
    metric = headline(suite, [sample.metric for sample in candidate])
    before = {sample.id: sample for sample in baseline if sample.metric == metric and sample.value is not None}
    pairs = [
        (before[sample.id], sample)
        for sample in candidate
        if sample.metric == metric and sample.value is not None and sample.id in before
    ]
    if not pairs or not any(sample.response for pair in pairs for sample in pair):
        return None
    words = [tuple(len(sample.response.split()) for sample in pair) for pair in pairs]
    change = paired_interval([float(b - a) for a, b in words], [sample.cluster for sample, _ in pairs], None)
    mean_before, mean_after = (math.fsum(column) / len(words) for column in zip(*words, strict=True))
    ends = (
        "none differs"
        if change.low is None or change.high is None
        else f"{_words(change.low)} to {_words(change.high)}"
    )
    return Length(
        title_of(suite), len(words), f"{mean_before:.1f}", f"{mean_after:.1f}", _words(change.mean.value), ends
    )


def _words(value: float) -> str:
    return WORDS.format(value, "+")


# The divergence of the policy from where it started.

DIGITS, MOST_PLACES = 3, 8
LINES = {"kl": "KL(policy ‖ {start}), nats a response", "kl_per_token": "KL(policy ‖ {start}), nats a token"}


@dataclass(frozen=True)
class DivergenceLine:
    """An estimate of the divergence as text: its name with the unit, its value and its 95 % interval."""

    name: str
    value: str
    interval: str


@dataclass(frozen=True)
class Divergence:
    """The lines of the table, over `responses` sampled responses.

    `tokens` is their mean length, and `ended` the share of them that ended before the limit.
    """

    responses: int
    tokens: str
    ended: str
    lines: list[DivergenceLine]


def divergence_of(store: Store, request: ReportRequest, start: str = "SFT") -> Divergence | None:
    """The divergence that a report pins; None if it pins none, or if no response was sampled. `start` is the name of
    where the policy started.

    Raises `WrongEvidence` for the divergence of another policy.
    """
    if request.divergence is None:
        return None
    commit = store.commit_of(request.divergence)
    measured = commit.inputs["policy"]
    if measured.digest != request.policy.digest:
        raise WrongEvidence(f"the divergence is of policy {measured.digest[:12]}, not of {request.policy.digest[:12]}")
    drawn = DivergenceSummary.of(commit)
    if drawn.kl is None or drawn.tokens_per_response is None or drawn.ended is None:
        return None
    values = {"kl": drawn.kl, "kl_per_token": drawn.kl_per_token}
    lines = [_line(text.format(start=start), values[name], drawn.intervals.get(name)) for name, text in LINES.items()]
    return Divergence(
        responses=drawn.prompts - drawn.no_room,
        tokens=f"{drawn.tokens_per_response:.1f}",
        ended=f"{drawn.ended:.0%}".replace("%", " %"),
        lines=lines,
    )


@dataclass(frozen=True)
class RoundLine:
    """A round's policy beside that of the round before, on held-out prompts."""

    round: int
    before: str
    after: str
    change: str
    interval: str
    prompts: int
    judge: str
    verdict: str


def rounds_of(store: Store, request: ReportRequest) -> list[RoundLine]:
    """The rounds that a report pins, in order."""
    return [_round(RoundSummary.of(store.commit_of(comparison))) for comparison in request.rounds]


def _round(told: RoundSummary) -> RoundLine:
    ends = "unknown" if told.low is None or told.high is None else f"{told.low:+.3f} to {told.high:+.3f}"
    return RoundLine(
        round=told.round,
        before=f"{told.before:.3f}",
        after=f"{told.after:.3f}",
        change=f"{told.difference:+.3f}",
        interval=ends,
        prompts=told.prompts,
        judge=told.judge_name,
        verdict={"improved": "better", "worse": "worse"}.get(told.verdict, "not decided"),
    )


def _line(text: str, value: Number, ends: tuple[float, float] | None) -> DivergenceLine:
    interval = "unknown" if ends is None else " to ".join(map(nats, ends))
    return DivergenceLine(text, nats(value), interval)


def nats(value: float | None) -> str:
    """A divergence as text with three significant digits: a policy that has moved little moved by more than 0.000."""
    if value is None:
        return "unknown"
    places = DIGITS if not value or abs(value) >= 1 else DIGITS - 1 - math.floor(math.log10(abs(value)))
    return Unit(1.0, min(places, MOST_PLACES), "nats", "").format(value)
