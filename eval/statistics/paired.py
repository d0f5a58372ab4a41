"""The interval of a paired difference, honest also where hardly an item differs.

A standard error is learnt from the clusters that differ. Where most clusters agree and fewer than ten do not,
there is too little to learn it from: with none it is zero, and the t interval a point. There the interval is
Tango's score interval, on the share of what could have been won and lost (tango.py). Three steps lead from pairs
of right and wrong to bounded values in clusters, each on the safe side:

- A difference d between values on a scale of width w counts as |d|/w of a pair won or lost. Among all differences
  in [−w, w] with the same mean and size, those that take only the values −w, 0 and w vary most.
- Clusters of m items each that rise and fall as one are worth (Σm)²/Σm² items (Kish 1965).
- The p-value is that of the same score test, so that interval and p-value never contradict each other.

Without bounded values nothing is known of changes that were not seen, and there is no such interval.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from eval.statistics.interval import Interval, Shares, mean_interval
from eval.statistics.mean import by_cluster, clustered_mean
from eval.statistics.tango import score, score_interval

ENOUGH = 10
"""Clusters that have to differ from the commonest difference before a standard error is trusted."""


def paired_interval(differences: Sequence[float], clusters: Sequence[str], width: float | None) -> Interval:
    """Mean difference with interval; `width` is how far two values can lie apart, None when nothing bounds them.

    Raises `ValueError` as `clustered_mean` does, and for a difference larger than the width.
    """
    mean = clustered_mean(differences, clusters)
    if width is not None and max(map(abs, differences)) > width * (1 + 1e-9):
        raise ValueError(f"a difference of {max(differences, key=abs)} on a scale of width {width}")
    if width is None or mean.clusters < 2 or not few_differ(differences, clusters):
        return mean_interval(mean)
    shares = shares_of(differences, clusters, width)
    low, high = score_interval(shares.gained, shares.lost, shares.pairs)
    p_value = math.erfc(abs(score(shares.gained, shares.lost, shares.pairs, 0.0)) / math.sqrt(2))
    return Interval(mean, low * width, high * width, p_value, shares)


def few_differ(differences: Sequence[float], clusters: Sequence[str]) -> bool:
    """Whether most clusters show one and the same difference, and fewer than ten another."""
    means = Counter(round(math.fsum(group) / len(group), 12) for group in by_cluster(differences, clusters))
    commonest = max(means.values())
    others = means.total() - commonest
    return others < ENOUGH and others < commonest


def shares_of(differences: Sequence[float], clusters: Sequence[str], width: float) -> Shares:
    """The shares won and lost, of as many pairs as the clusters are worth."""
    n = len(differences)
    gained = math.fsum(value for value in differences if value > 0) / (n * width)
    lost = math.fsum(-value for value in differences if value < 0) / (n * width)
    pairs = n * n / sum(len(group) ** 2 for group in by_cluster(differences, clusters))
    return Shares(gained, lost, pairs, width)
