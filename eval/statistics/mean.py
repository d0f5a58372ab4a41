"""Means with cluster-robust standard errors.

Items that share a prompt or a question are not independent, so residuals are summed within a cluster
first (Liang and Zeger 1986, with the G/(G−1) correction; Miller 2024, "Adding Error Bars to Evals").
With one item a cluster this is the ordinary standard error with n − 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mean:
    """A mean over `n` values in `clusters` clusters; `stderr` is None when fewer than two clusters give one."""

    value: float
    stderr: float | None
    n: int
    clusters: int


def by_cluster(values: Sequence[float], clusters: Sequence[str]) -> list[list[float]]:
    """The values of each cluster, clusters in order of appearance.

    Raises `ValueError` when there are no values, or the lengths differ.
    """
    if not values or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values in {len(clusters)} clusters have no mean")
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        groups[cluster].append(value)
    return list(groups.values())


def clustered_mean(values: Sequence[float], clusters: Sequence[str]) -> Mean:
    """Mean and standard error of `values`, whose i-th entry belongs to the i-th cluster.

    Raises `ValueError` when there is nothing to take a mean of, or the lengths differ.
    """
    grouped = by_cluster(values, clusters)
    n, groups = len(values), len(grouped)
    mean = math.fsum(values) / n
    if groups < 2:
        return Mean(mean, None, n, groups)
    if min(values) == max(values):
        return Mean(mean, 0.0, n, groups)  # what rounding leaves of their residuals is no spread
    squares = math.fsum(math.fsum(value - mean for value in group) ** 2 for group in grouped)
    return Mean(mean, math.sqrt(squares * groups / (groups - 1)) / n, n, groups)
