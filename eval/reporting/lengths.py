"""How long the answers are: a preference for longer ones is the commonest way to win a judge over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from eval.headline import headline, title_of
from eval.samples import Sample
from eval.statistics import paired_interval
from eval.units import Unit

WORDS = Unit(1.0, 1, "words", "")


@dataclass(frozen=True)
class Length:
    """Mean words an answer on one suite, over the answers that both models gave; the change with its interval."""

    title: str
    n: int
    baseline: str
    candidate: str
    change: str
    interval: str


def length(suite: str, baseline: Sequence[Sample], candidate: Sequence[Sample]) -> Length | None:
    """The lengths on one suite in words; None where the models answered nothing in common."""
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
    found = paired_interval([float(b - a) for a, b in words], [sample.cluster for sample, _ in pairs], None)
    mean_before, mean_after = (math.fsum(column) / len(words) for column in zip(*words, strict=True))
    ends = "none differs" if found.low is None or found.high is None else f"{_told(found.low)} to {_told(found.high)}"
    return Length(title_of(suite), len(words), f"{mean_before:.1f}", f"{mean_after:.1f}", _told(found.mean.value), ends)


def _told(value: float) -> str:
    return WORDS.told(value, "+")
