"""Means and paired differences with cluster-robust standard errors. Pure functions of plain numbers.

Items that share a prompt or a question are not independent, so residuals are summed within a cluster
first (Liang and Zeger 1986, with the G/(G−1) correction; Miller 2024, "Adding Error Bars to Evals").
With one item a cluster this is the ordinary standard error with n − 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
POWER_FACTOR = 2.8015852  # z(0.975) + z(0.80): two-sided 5 % test with 80 % power

ComparisonVerdict = Literal["improved", "regressed", "equivalent", "inconclusive"]


@dataclass(frozen=True)
class Mean:
    """A mean over `n` values in `clusters` clusters; `stderr` is None when fewer than two clusters give one."""

    value: float
    stderr: float | None
    n: int
    clusters: int


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval and two-sided p-value against zero; None where they cannot be known."""

    mean: Mean
    low: float | None
    high: float | None
    p_value: float | None


def clustered_mean(values: Sequence[float], clusters: Sequence[str]) -> Mean:
    """Mean and standard error of `values`, whose i-th entry belongs to the i-th cluster.

    Raises `ValueError` when there is nothing to take a mean of, or the lengths differ.
    """
    if not values or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values in {len(clusters)} clusters have no mean")
    n = len(values)
    mean = math.fsum(values) / n
    residuals: defaultdict[str, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        residuals[cluster].append(value - mean)
    groups = len(residuals)
    if groups < 2:
        return Mean(mean, None, n, groups)
    squares = math.fsum(math.fsum(group) ** 2 for group in residuals.values())
    return Mean(mean, math.sqrt(squares * groups / (groups - 1)) / n, n, groups)


def interval(mean: Mean) -> Interval:
    """Student's t with (clusters − 1) degrees of freedom: the normal interval for many, wider for few."""
    if mean.stderr is None:
        return Interval(mean, None, None, None)
    if mean.stderr == 0.0:
        return Interval(mean, mean.value, mean.value, 1.0 if mean.value == 0.0 else 0.0)
    from scipy.special import stdtr, stdtrit

    freedom = mean.clusters - 1
    half = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * mean.stderr
    p_value = 2.0 * float(stdtr(freedom, -abs(mean.value) / mean.stderr))
    return Interval(mean, mean.value - half, mean.value + half, p_value)


def minimum_detectable_effect(stderr: float) -> float:
    """The smallest true difference that a two-sided 5 % test would find with 80 % power.

    Meaningless for a standard error of zero: values that never differed say nothing of how small a difference
    would show.
    """
    return POWER_FACTOR * stderr


def clusters_needed(difference: Interval, threshold: float) -> int | None:
    """How many clusters would tell the difference from `threshold` with 80 % power, if it is what it seems.

    None when no number would: the estimate lies on the threshold, or its spread is unknown or not seen at all.
    """
    mean = difference.mean
    distance = abs(mean.value - threshold)
    if not mean.stderr or distance == 0.0:
        return None
    return math.ceil(mean.clusters * (minimum_detectable_effect(mean.stderr) / distance) ** 2)


def verdict(difference: Interval, margin: float = 0.0) -> ComparisonVerdict:
    """`improved` or `regressed` when the interval leaves out zero, else `equivalent` when it lies within ±margin."""
    if difference.low is None or difference.high is None:
        return "inconclusive"
    if difference.low > 0:
        return "improved"
    if difference.high < 0:
        return "regressed"
    return "equivalent" if -margin <= difference.low and difference.high <= margin else "inconclusive"
