"""The items that changed most: what was asked, and both answers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.headline import headline, title_of
from eval.samples import Sample
from eval.scale import width_of
from eval.units import unit_of

EXAMPLES = 10
"""Most items shown at each end of a suite."""
LONGEST_TEXT = 4000
SUMMARY = 120


@dataclass(frozen=True)
class Example:
    """One item with both answers, and what the candidate gained or lost on it; texts end with … where cut."""

    id: str
    difference: str
    values: str
    summary: str
    prompt: str
    baseline: str
    candidate: str


@dataclass(frozen=True)
class Examples:
    """The largest gains and losses of a suite; `gained` and `lost` count all there are."""

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
    """What an item asked, turn by turn where there are several."""
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
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} …"
