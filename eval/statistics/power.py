"""The power of a comparison: the smallest difference it can detect, and the number of items it would need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from eval.statistics.means import CONFIDENCE, Interval, Z
from eval.statistics.paired import MIN_DIFFERING, score_interval, score_statistic

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

    return fewest(decides)


def fewest(enough: Callable[[int], bool]) -> int | None:
    """The fewest clusters, at least two, that are enough, where more of them are too; None if `MAX_CLUSTERS` are not.

    They are doubled until they are enough, and then halved between.
    """
    few, many = 1, 2
    while not enough(many):
        few, many = many, many * 2
        if many > MAX_CLUSTERS:
            return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many


# Before a comparison is made: the smallest difference that it could prove, by the spread that earlier ones showed.
#
# A standard error can be foreseen, because it depends on the number of clusters and on how much their differences
# vary, and the last is much the same from night to night. What cannot be foreseen is the difference itself.

POWER = 0.8
HALVINGS = 40
TAILS = 9.0
"""Standard deviations to each side within which all counts of differing items lie, for any purpose of ours."""


@dataclass(frozen=True)
class Spread:
    """How much paired differences of a metric vary: a comparison of n clusters has a standard error of `deviation`/√n.

    `differing` is given where items are won, lost or the same, on a scale of `width`: the share that is won or lost.
    """

    deviation: float
    differing: float | None = None
    width: float = 1.0


def pooled_spread(earlier: Iterable[tuple[Interval, int | None]]) -> Spread | None:
    """The spread that earlier comparisons of a metric showed, each weighted by its clusters; None without any.

    Each comes with its number of items that differ, if items are right or wrong with one item a cluster (else None).
    """
    clusters, squares, differing, known, width = 0, 0.0, 0.0, True, 1.0
    for difference, items in earlier:
        mean, shares = difference.mean, difference.shares
        if difference.low is None or mean.stderr is None:
            continue
        clusters += mean.clusters
        if shares is not None:
            variance = (shares.gained + shares.lost) - (shares.gained - shares.lost) ** 2
            squares += mean.clusters * variance * shares.width**2 * mean.clusters / shares.pairs
            differing += mean.clusters * (shares.gained + shares.lost)
            width = shares.width
        else:
            squares += (mean.clusters * mean.stderr) ** 2
            differing += items or 0
            known = known and items is not None
    if not clusters:
        return None
    return Spread(math.sqrt(squares / clusters), differing / clusters if known else None, width)


def smallest_provable(spread: Spread, clusters: int) -> float | None:
    """The smallest true difference that a comparison of so many clusters would prove with 80 % probability: its 95 %
    interval (eval/statistics/paired.py) would lie on the difference's side of zero.

    Where items are won, lost or the same, it is exact for as many differing items as before (Connor 1987, "Sample size
    for testing differences in proportions for the paired-sample design", without his approximation); a larger
    difference than these can make is made of new ones. Otherwise it is the deviation's. None for too few clusters.
    """
    if clusters < 2:
        return None
    if spread.differing is None:
        from scipy.special import stdtrit

        quantiles = float(stdtrit(clusters - 1, 0.5 + CONFIDENCE / 2)) + float(stdtrit(clusters - 1, POWER))
        return quantiles * spread.deviation / math.sqrt(clusters)
    low, high = 0.0, 1.0
    if detected(high, spread.differing, clusters) < POWER:
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if detected(middle, spread.differing, clusters) >= POWER else (middle, high)
    return high * spread.width


def detected(difference: float, differing: float, items: int) -> float:
    """How probable it is that `items` pairs prove a true difference above 0, if the share `differing` of them differs
    (more, where the difference needs more)."""
    import numpy as np
    from scipy.special import bdtrc, gammaln, stdtrit

    share = min(max(differing, difference), 1.0)
    spread = TAILS * (math.sqrt(items * share * (1 - share)) + 1)
    counts = np.arange(max(0, math.floor(items * share - spread)), min(items, math.ceil(items * share + spread)) + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(counts > 0, counts * np.log(share), 0.0)
        logs += np.where(counts < items, (items - counts) * np.log1p(-share), 0.0)
    weights = np.exp(gammaln(items + 1) - gammaln(counts + 1) - gammaln(items - counts + 1) + logs)
    # the least lead of won items over lost ones that puts the interval above zero: the score's, or Student's t
    square = float(stdtrit(items - 1, 0.5 + CONFIDENCE / 2)) ** 2
    few = (counts < MIN_DIFFERING) & (counts < items - counts)
    lead = np.where(few, Z * np.sqrt(counts), np.sqrt(square * counts * items / (items - 1 + square)))
    won = np.floor((counts + lead) / 2) + 1  # so many of the differing items
    chance = (1 + difference / share) / 2 if share else 0.5
    proved = np.where(won <= counts, bdtrc(np.minimum(won, counts) - 1, counts, min(chance, 1.0)), 0.0)
    return float(np.sum(weights * proved))


def clusters_to_prove(spread: Spread, difference: float) -> int | None:
    """How many clusters would prove a true difference with 80 % probability; None if `MAX_CLUSTERS` do not."""

    def enough(clusters: int) -> bool:
        provable = smallest_provable(spread, clusters)
        return provable is not None and provable <= difference

    return fewest(enough)
