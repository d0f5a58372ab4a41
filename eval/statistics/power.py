"""The power of a comparison: the smallest difference it can detect, and the number of items it would need."""

from __future__ import annotations

import math

from eval.statistics.means import Interval
from eval.statistics.paired import Z, score_interval, score_statistic

POWER_FACTOR = 2.8015852  # z(0.975) + z(0.80): two-sided 5 % test with 80 % power
MAX_CLUSTERS = 10**7
"""Largest number of clusters that is given as an answer."""


def minimum_detectable_effect(difference: Interval) -> float | None:
    """The smallest true difference that a two-sided 5 % test would find with 80 % power (Miller 2024, section 5).

    The standard error is the difference's own; for a score interval it is the half-width divided by z. None without an
    interval.
    """
    if difference.low is None or difference.high is None:
        return None
    if difference.shares is not None:
        return POWER_FACTOR * (difference.high - difference.low) / (2 * Z)
    return None if difference.mean.stderr is None else POWER_FACTOR * difference.mean.stderr


def p_above(difference: Interval, threshold: float) -> float | None:
    """One-sided p-value of the hypothesis that the true difference is at most `threshold`.

    Below 0.025 exactly when the 95 % interval lies above it. None without an interval.
    """
    mean, shares = difference.mean, difference.shares
    if difference.low is None:
        return None
    if shares is not None:
        delta = threshold / shares.width
        if abs(delta) >= 1.0:
            return 0.0 if delta < 0 else 1.0
        return 0.5 * math.erfc(score_statistic(shares.gained, shares.lost, shares.pairs, delta) / math.sqrt(2))
    from scipy.special import stdtr

    assert mean.stderr
    return float(stdtr(mean.clusters - 1, -(mean.value - threshold) / mean.stderr))


def clusters_needed(difference: Interval, threshold: float) -> int | None:
    """How many clusters would separate the difference from `threshold`, if the true difference is the measured one.

    With a standard error: the number for 80 % power. With shares: the number at which the interval no longer contains
    the threshold. None if no number up to `MAX_CLUSTERS` is enough, or if the spread is unknown.
    """
    mean, shares = difference.mean, difference.shares
    distance = abs(mean.value - threshold)
    if difference.low is None or distance == 0.0:
        return None
    if shares is None:
        assert mean.stderr
        needed = mean.clusters * (POWER_FACTOR * mean.stderr / distance) ** 2
        return math.ceil(needed) if needed <= MAX_CLUSTERS else None

    def decides(clusters: int) -> bool:
        low, high = score_interval(shares.gained, shares.lost, shares.pairs * clusters / mean.clusters)
        return low * shares.width > threshold or high * shares.width < threshold

    few, many = 1, 2
    while not decides(many):
        few, many = many, many * 2
        if many > MAX_CLUSTERS:
            return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if decides(middle) else (middle, many)
    return many
