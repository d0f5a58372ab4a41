"""Means with cluster-robust standard errors.

Items that share a prompt or a question are not independent, so residuals are summed within a cluster
first (Liang and Zeger 1986, with the G/(G−1) correction; Miller 2024, "Adding Error Bars to Evals").
With one item in every cluster this is the ordinary standard error with n − 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Mean:
    """A mean over `n` values in `clusters` clusters; `stderr` is None for fewer than two clusters."""

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

    Raises `ValueError` if there are no values, or if the lengths differ.
    """
    grouped = by_cluster(values, clusters)
    n, groups = len(values), len(grouped)
    mean = math.fsum(values) / n
    if groups < 2:
        return Mean(mean, None, n, groups)
    if min(values) == max(values):
        return Mean(mean, 0.0, n, groups)  # residuals of equal values are only rounding errors
    squares = math.fsum(math.fsum(value - mean for value in group) ** 2 for group in grouped)
    return Mean(mean, math.sqrt(squares * groups / (groups - 1)) / n, n, groups)


# A mean with its 95 % interval.

CONFIDENCE = 0.95
Z = 1.959963984540054  # standard normal, 97.5 %


@dataclass(frozen=True)
class Shares:
    """The numbers behind a score interval: the shares of `pairs` that were gained and lost, on a scale of `width`.

    `pairs` is an effective number of pairs. (`gained` − `lost`) × `width` is the mean difference.
    """

    gained: float
    lost: float
    pairs: float
    width: float


def two_way_mean(values: Sequence[float], first: Sequence[str], second: Sequence[str]) -> Mean:
    """The mean with its standard error where values are alike within clusters of two kinds: the variance of both
    minus that of their intersection (Cameron, Gelbach and Miller 2011, Journal of Business & Economic Statistics
    29:238), at least the larger of the two. The degrees of freedom are those of the kind with fewer clusters."""
    kinds = [clustered_mean(values, names) for names in (first, second)]
    both = clustered_mean(values, [repr(names) for names in zip(first, second, strict=True)])
    fewest = min(kinds, key=lambda mean: mean.clusters)
    errors = [mean.stderr for mean in (*kinds, both)]
    if None in errors:
        return replace(fewest, stderr=None)
    squares = [error**2 for error in errors if error is not None]
    variance = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    return replace(fewest, stderr=math.sqrt(variance))


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval and the two-sided p-value against zero; None if they cannot be known.

    `shares` are given for a score interval; otherwise the interval is Student's t on the standard error.
    """

    mean: Mean
    low: float | None
    high: float | None
    p_value: float | None
    shares: Shares | None = None


def mean_interval(mean: Mean) -> Interval:
    """Student's t interval with (clusters − 1) degrees of freedom: wider than the normal interval for few clusters.

    If all clusters are equal there is no interval, because the true spread is unknown and not zero.
    """
    if not mean.stderr:
        return Interval(mean, None, None, None)
    from scipy.special import stdtr, stdtrit

    freedom = mean.clusters - 1
    half = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * mean.stderr
    p_value = 2.0 * float(stdtr(freedom, -abs(mean.value) / mean.stderr))
    return Interval(mean, mean.value - half, mean.value + half, p_value)


# Two shares of different items.


def share_difference(first: Mean, second: Mean) -> Interval:
    """`second` − `first`, two shares of items that have nothing to do with each other: Newcombe's interval of Wilson's
    (1998, Statistics in Medicine 17:873, method 10), which is also valid where all items of a side are equal.

    Each side counts as the number of independent items that its standard error stands for, at most its clusters.
    """
    (low_1, high_1), (low_2, high_2) = _wilson(first), _wilson(second)
    difference = second.value - first.value
    low = difference - math.hypot(second.value - low_2, high_1 - first.value)
    high = difference + math.hypot(high_2 - second.value, first.value - low_1)
    return Interval(
        Mean(difference, None, first.n + second.n, first.clusters + second.clusters), low, high, p_value=None
    )


def weighted_difference(parts: Sequence[tuple[float, Mean, Mean]]) -> Interval:
    """The sum of weight · (`second` − `first`) over parts (weight, first, second), each two shares as in
    `share_difference`, whose intervals are combined as Zou, Huang and Zhang do (2009, Computational Statistics & Data
    Analysis 53:1080); the weights are positive, and the parts independent."""
    each = [(weight, share_difference(first, second)) for weight, first, second in parts]
    difference = math.fsum(weight * part.mean.value for weight, part in each)
    below = [weight * (part.mean.value - part.low) for weight, part in each if part.low is not None]
    above = [weight * (part.high - part.mean.value) for weight, part in each if part.high is not None]
    n, clusters = (sum(getattr(part.mean, count) for _, part in each) for count in ("n", "clusters"))
    mean = Mean(difference, None, n, clusters)
    return Interval(mean, difference - math.hypot(*below), difference + math.hypot(*above), p_value=None)


def _wilson(share: Mean) -> tuple[float, float]:
    """Wilson's (1927) interval of a share."""
    items: float = share.clusters
    if share.stderr:
        items = min(items, share.value * (1 - share.value) / share.stderr**2)
    centre = (share.value + Z**2 / (2 * items)) / (1 + Z**2 / items)
    half = Z / (1 + Z**2 / items) * math.sqrt(share.value * (1 - share.value) / items + Z**2 / (4 * items**2))
    return centre - half, centre + half


# One more run of the same thing.


@dataclass(frozen=True)
class Repeats:
    """The mean and standard deviation of runs that differ by chance, and where one more run lies.

    All but the mean are None for fewer than two runs. `low` and `high` are None for equal runs as well, because their
    true spread is unknown and not zero.
    """

    mean: float
    deviation: float | None
    low: float | None
    high: float | None

    def has(self, value: float, rounding: float = 0.0) -> bool | None:
        """Whether one more run could have given a value that is known up to `rounding`; None if that is not known."""
        if self.low is None or self.high is None:
            return None
        return self.low - rounding <= value <= self.high + rounding


def repeats(values: Sequence[float], comparisons: int = 1) -> Repeats:
    """Where one more value lies with 95 % probability, by Student's t: mean ± t·s·√(1 + 1/n), for runs whose values are
    about normal.

    With several `comparisons`, the interval is so much wider that all of them hold together with at least 95 %
    probability (Bonferroni). Raises `ValueError` without a value.
    """
    if not values:
        raise ValueError("no run, no mean")
    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return Repeats(mean, None, None, None)
    if min(values) == max(values):
        return Repeats(mean, 0.0, None, None)
    from scipy.special import stdtrit

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 1 - (1 - CONFIDENCE) / comparisons / 2)) * deviation * math.sqrt(1 + 1 / n)
    return Repeats(mean, deviation, mean - half, mean + half)


# A ratio of two totals over the same items, such as nats over tokens.


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[str] | None = None
) -> Interval:
    """Σ numerators / Σ denominators, with its 95 % interval; without `clusters` the items are independent.

    The standard error is that of the linearised items (delta method; Cochran 1977, section 2.11): exact for many
    items, a little small for few. Raises `ValueError` when there are no items, or the denominators add up to nothing.
    """
    total = math.fsum(denominators)
    if not total:
        raise ValueError("the denominators add up to zero")
    ratio, mean = math.fsum(numerators) / total, total / len(denominators)
    pairs = zip(numerators, denominators, strict=True)
    linearised = [ratio + (numerator - ratio * denominator) / mean for numerator, denominator in pairs]
    alone = [str(place) for place in range(len(linearised))]
    linearised_mean = clustered_mean(linearised, alone if clusters is None else clusters)
    return mean_interval(replace(linearised_mean, value=ratio))
