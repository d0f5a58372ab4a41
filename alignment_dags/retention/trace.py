"""The trace that training leaves on a pair: its margin beside those of matched pairs that the policy never saw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from eval.statistics import mean_interval, two_way_mean


@dataclass(frozen=True)
class Measured:
    """A pair under a policy: its margin in nats (the implicit reward of the chosen side minus the rejected side's), and
    what it is matched by: the start checkpoint's margin, the tokens of both sides, and the recipe's source that it is
    of (empty where that is not known, and for a recipe with one source). Pairs of one `prompt` are not independent;
    None stands for a prompt of its own."""

    margin: float
    ref_margin: float
    tokens: int
    source: str = ""
    prompt: str | None = None


class Trace(BaseModel):
    """Mean margins of `rows` withdrawn rows and of their matches under one policy, and the difference with its 95 %
    interval (None for fewer than two matches). `rank` is the mean share of the unseen pairs of a row's source with a
    lower margin: about a half for rows that are like them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    matches: int
    margin: float
    matched_margin: float
    difference: float
    low: float | None
    high: float | None
    rank: float


def trace(withdrawn: Sequence[Measured], unseen: Sequence[Measured]) -> Trace:
    """The withdrawn rows beside unseen ones: each is matched with the unseen pair of its source that is nearest by the
    start checkpoint's margin and by length, both in standard deviations of the unseen pairs. A row whose source has no
    unseen pair is matched among all. Raises `ValueError` without rows on either side.

    Sources may ask for opposite things, so that a pair of another source says nothing of what a row would be unseen.
    Rows are clustered by their prompt, and by that of their match.
    """
    if not withdrawn or not unseen:
        raise ValueError("nothing to compare")
    scales = [_deviation([one.ref_margin for one in unseen]), _deviation([math.log(one.tokens) for one in unseen])]
    places = range(len(unseen))
    by_source = {
        source: [at for at in places if unseen[at].source == source] for source in {one.source for one in unseen}
    }
    peers = [by_source.get(row.source, places) for row in withdrawn]

    def distance(row: Measured, other: Measured) -> float:
        apart = (row.ref_margin - other.ref_margin, math.log(row.tokens / other.tokens))
        return sum((value / scale) ** 2 for value, scale in zip(apart, scales, strict=True))

    matches = [min(of, key=lambda at: distance(row, unseen[at])) for row, of in zip(withdrawn, peers, strict=True)]
    differences = [row.margin - unseen[at].margin for row, at in zip(withdrawn, matches, strict=True)]
    prompts = [f"row {place}" if row.prompt is None else row.prompt for place, row in enumerate(withdrawn)]
    interval = mean_interval(two_way_mean(differences, prompts, [unseen[at].prompt or str(at) for at in matches]))
    ranks = [_rank(row.margin, [unseen[at].margin for at in of]) for row, of in zip(withdrawn, peers, strict=True)]
    return Trace(
        rows=len(withdrawn),
        matches=len(set(matches)),
        margin=_mean([row.margin for row in withdrawn]),
        matched_margin=_mean([unseen[at].margin for at in matches]),
        difference=interval.mean.value,
        low=interval.low,
        high=interval.high,
        rank=_mean(ranks),
    )


def _rank(value: float, others: Sequence[float]) -> float:
    """The share of the others that are lower; of equal ones a half counts."""
    return _mean([(other < value) + 0.5 * (other == value) for other in others])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _deviation(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(_mean([(value - mean) ** 2 for value in values])) or 1.0
