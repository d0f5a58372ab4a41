"""The interval of a paired difference, which is also valid if hardly any item differs.

A standard error is estimated from the clusters that differ. If most clusters agree and fewer than ten differ, the
estimate is poor; if none differs it is zero, and the t interval is a point. In these cases the interval is Tango's
score interval (below), on the shares of the pairs that were won and lost. Three steps extend it from pairs of right and
wrong to bounded values in clusters; each makes the interval wider rather than narrower:

- A difference d on a scale of width w counts as |d|/w of a pair won or lost. Among all differences in [−w, w] with the
same mean and mean size, differences of only −w, 0 and w vary most. - Clusters of m items that change together are worth
(Σm)²/Σm² items (Kish 1965). - The p-value is the one of the same score test, so that interval and p-value never
contradict each other.

For values without a bound there is no such interval, because unseen changes could have any size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from eval.statistics.means import Interval, Mean, Shares, Z, by_cluster, clustered_mean, mean_interval

# Tango's score interval for the difference of two paired proportions.
#
# Of n pairs a share `gained` went from wrong to right and a share `lost` from right to wrong; δ = gained − lost.
# The interval holds every δ that the score test does not reject (Tango 1998, Statistics in Medicine 17:891,
# equations 3 to 7). It stays valid if Wald's interval shrinks to a point: without any discordant pair it is
# ±z²/(n + z²). Fagerland, Lydersen and Laake (2014, Statistics in Medicine 33:2850) recommend it for small samples.

HALVINGS = 60


def score_statistic(gained: float, lost: float, n: float, delta: float) -> float:
    """The score statistic for a true difference of `delta`: standard normal, falling in `delta`.

    `gained` and `lost` are shares of the `n` pairs, −1 < `delta` < 1. With `delta` 0 its square is McNemar's
    chi-square without a correction.
    """
    distance = gained - lost - delta
    if distance == 0.0:
        return 0.0
    linear = -gained - lost + (2.0 - gained + lost) * delta
    root = math.sqrt(max(linear * linear + 8.0 * lost * delta * (1.0 - delta), 0.0))
    share = (root - linear) / 4.0  # the likeliest share of lost pairs when the difference is delta
    variance = max(2.0 * share + delta * (1.0 - delta), 0.0) / n
    return distance / math.sqrt(variance) if variance > 0.0 else math.copysign(math.inf, distance)


def score_interval(gained: float, lost: float, n: float, z: float = Z) -> tuple[float, float]:
    """The interval of `n` pairs of which the shares `gained` and `lost` are discordant.

    `n` may be an effective number of pairs, and the shares may count partly won pairs. Raises `ValueError` for shares
    outside 0 to 1, and without pairs.
    """
    if n <= 0 or gained < 0 or lost < 0 or gained + lost > 1 + 1e-9:
        raise ValueError(f"{gained} gained and {lost} lost of {n} pairs are not shares")
    estimate = gained - lost

    def end(inside: float, outside: float, limit: float) -> float:
        """Where the score passes `limit`, between an accepted and a rejected difference."""
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            if abs(score_statistic(gained, lost, n, middle)) <= limit:
                inside = middle
            else:
                outside = middle
        return inside

    return end(estimate, -1.0, z), end(estimate, 1.0, z)


MIN_DIFFERING = 10
"""Clusters that must differ from the most common difference before a standard error is trusted."""


def paired_interval(differences: Sequence[float], clusters: Sequence[str], width: float | None) -> Interval:
    """Mean difference with interval; `width` is the largest possible difference, None for values without a bound.

    Raises `ValueError` as `clustered_mean` does, and for a difference larger than the width.
    """
    mean = clustered_mean(differences, clusters)
    if width is not None and max(map(abs, differences)) > width * (1 + 1e-9):
        raise ValueError(f"a difference of {max(differences, key=abs)} on a scale of width {width}")
    if width is None or mean.clusters < 2 or not few_differ(differences, clusters):
        return mean_interval(mean)
    shares = shares_of(differences, clusters, width)
    low, high = score_interval(shares.gained, shares.lost, shares.pairs)
    p_value = math.erfc(abs(score_statistic(shares.gained, shares.lost, shares.pairs, 0.0)) / math.sqrt(2))
    return Interval(mean, low * width, high * width, p_value, shares)


def few_differ(differences: Sequence[float], clusters: Sequence[str]) -> bool:
    """Whether most clusters have the same difference, and fewer than ten have another."""
    means = Counter(round(math.fsum(group) / len(group), 12) for group in by_cluster(differences, clusters))
    commonest = max(means.values())
    others = means.total() - commonest
    return others < MIN_DIFFERING and others < commonest


def shares_of(differences: Sequence[float], clusters: Sequence[str], width: float) -> Shares:
    """The shares won and lost, with the effective number of pairs of the clusters."""
    n = len(differences)
    gained = math.fsum(value for value in differences if value > 0) / (n * width)
    lost = math.fsum(-value for value in differences if value < 0) / (n * width)
    pairs = n * n / sum(len(group) ** 2 for group in by_cluster(differences, clusters))
    return Shares(gained, lost, pairs, width)


# The win rate of a model over another; a tie is half a win.

HALF = 0.5


def win_rate(outcomes: Sequence[float], clusters: Sequence[str]) -> Interval:
    """The win rate, its 95 % interval and the p-value against one half, of outcomes 1 (won), 0.5 (tie) and 0 (lost),
    the i-th on a question of the i-th cluster.

    The distance from one half is a paired difference on a scale of width one half, so a model that wins every
    time still has an interval. Raises `ValueError` for another outcome, or none.
    """
    if odd := [outcome for outcome in outcomes if outcome not in (0.0, HALF, 1.0)]:
        raise ValueError(f"an outcome of {odd[0]} is neither won, lost nor tied")
    difference = paired_interval([outcome - HALF for outcome in outcomes], clusters, HALF)
    mean = Mean(difference.mean.value + HALF, difference.mean.stderr, difference.mean.n, difference.mean.clusters)
    low, high = (None if end is None else end + HALF for end in (difference.low, difference.high))
    return Interval(mean, low, high, difference.p_value)
