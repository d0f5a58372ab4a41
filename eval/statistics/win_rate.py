"""The win rate of one model over another, a tie being half a win."""

from __future__ import annotations

from collections.abc import Sequence

from eval.statistics.interval import Interval
from eval.statistics.mean import Mean
from eval.statistics.paired import paired_interval

EVEN = 0.5


def win_rate(outcomes: Sequence[float], clusters: Sequence[str]) -> Interval:
    """The win rate, its 95 % interval and the p-value against one half, of outcomes 1 (won), 0.5 (tie) and 0 (lost),
    the i-th on a question of the i-th cluster.

    The distance from one half is a paired difference on a scale of width one half, so a model that wins every
    time still has an interval. Raises `ValueError` for another outcome, or none.
    """
    if odd := [outcome for outcome in outcomes if outcome not in (0.0, EVEN, 1.0)]:
        raise ValueError(f"an outcome of {odd[0]} is neither won, lost nor tied")
    found = paired_interval([outcome - EVEN for outcome in outcomes], clusters, EVEN)
    mean = Mean(found.mean.value + EVEN, found.mean.stderr, found.mean.n, found.mean.clusters)
    low, high = (None if end is None else end + EVEN for end in (found.low, found.high))
    return Interval(mean, low, high, found.p_value)
