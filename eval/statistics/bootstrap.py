"""The paired cluster bootstrap: an interval that assumes no distribution, only that clusters are like each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eval.statistics.mean import by_cluster

RESAMPLES = 2000
BLOCK = 2_000_000
"""Clusters drawn at once, so that memory does not grow with their number."""


def bootstrap_interval(
    values: Sequence[float], clusters: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """The BCa interval (Efron 1987) of the mean of `values`, at 95 %, from whole clusters drawn with replacement.

    Given paired differences it is the paired bootstrap. The same seed gives the same interval, in any order. None
    where a resample cannot differ from the sample: fewer than two clusters, or all alike.
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
