"""McNemar's exact test for two models on the same right-or-wrong items."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, TypeVar

from eval.statistics.means import Interval, by_cluster


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided p-value that items are gained and lost alike, by the binomial distribution (McNemar 1947).

    Only the items on which the models differ count; with none of them it is 1.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"{gained} gained and {lost} lost are not counts")
    from scipy.special import bdtr

    return min(1.0, 2.0 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


# Holm's correction (Holm 1979): the chance of any false claim among several stays at the level of one.

Name = TypeVar("Name", bound=Hashable)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Adjusted p-values, in the given order. Claims with an adjusted p-value below the level may be made together.

    The smallest of m is multiplied by m, the next by m − 1, and so on; none is smaller than the one before it.
    """
    adjusted: dict[Name, float] = {}
    reached = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda claim: p_values[claim])):
        reached = max(reached, min(1.0, p_values[name] * (len(p_values) - rank)))
        adjusted[name] = reached
    return {name: adjusted[name] for name in p_values}


# The paired cluster bootstrap: an interval that assumes no distribution, only exchangeable clusters.

RESAMPLES = 2000
BLOCK = 2_000_000
"""Most clusters that are drawn at once, so that memory does not grow with the number of resamples."""


def bootstrap_interval(
    values: Sequence[float], clusters: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """The BCa interval (Efron 1987) of the mean of `values`, at 95 %, from whole clusters drawn with replacement.

    Given paired differences it is the paired bootstrap. The same seed gives the same interval, whatever the order of
    the values. None if a resample cannot differ from the sample: fewer than two clusters, or equal clusters.
    """
    import numpy as np
    from scipy.special import ndtr, ndtri

    grouped = sorted(by_cluster(values, clusters), key=lambda group: (math.fsum(group), len(group)))
    sums = np.array([math.fsum(group) for group in grouped])
    sizes = np.array([len(group) for group in grouped], dtype=float)
    if len(grouped) < 2 or np.ptp(sums / sizes) == 0.0:
        return None
    estimate = sums.sum() / sizes.sum()
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
            for rows in _blocks(resamples, len(grouped))
            for drawn in [generator.integers(0, len(grouped), size=(rows, len(grouped)))]
        ]
    )
    below = ((means < estimate).sum() + 0.5 * (means == estimate).sum()) / resamples
    bias = ndtri(np.clip(below, 1 / (resamples + 1), resamples / (resamples + 1)))
    left_out = (sums.sum() - sums) / (sizes.sum() - sizes)
    spread = left_out.mean() - left_out
    skewness = (spread**3).sum() / (6.0 * (spread**2).sum() ** 1.5)
    tails = bias + ndtri(np.array([0.025, 0.975]))
    low, high = np.quantile(means, ndtr(bias + tails / (1.0 - skewness * tails)))
    return float(low), float(high)


def _blocks(resamples: int, clusters: int) -> list[int]:
    rows = max(1, BLOCK // clusters)
    return [min(rows, resamples - start) for start in range(0, resamples, rows)]


# The conclusion that an interval allows.

ComparisonVerdict = Literal["improved", "regressed", "equivalent", "inconclusive"]


def verdict(difference: Interval, margin: float = 0.0) -> ComparisonVerdict:
    """`improved` or `regressed` if the interval excludes zero; else `equivalent` if it lies within ±margin."""
    if difference.low is None or difference.high is None:
        return "inconclusive"
    if difference.low > 0:
        return "improved"
    if difference.high < 0:
        return "regressed"
    return "equivalent" if -margin <= difference.low and difference.high <= margin else "inconclusive"
