"""A mean with its 95 % interval."""

from __future__ import annotations

from dataclasses import dataclass

from eval.statistics.mean import Mean

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Shares:
    """What a score interval is made of: the shares of `pairs` (an effective number of them) that were gained and
    lost on a scale of `width`; `gained` − `lost` times `width` is the mean difference."""

    gained: float
    lost: float
    pairs: float
    width: float


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval and two-sided p-value against zero; None where they cannot be known.

    `shares` are given where it is a score interval; else it is Student's t on the standard error.
    """

    mean: Mean
    low: float | None
    high: float | None
    p_value: float | None
    shares: Shares | None = None


def mean_interval(mean: Mean) -> Interval:
    """Student's t with (clusters − 1) degrees of freedom: the normal interval for many, wider for few.

    Without a spread between clusters there is no interval: a spread of zero was seen and is not known.
    """
    if not mean.stderr:
        return Interval(mean, None, None, None)
    from scipy.special import stdtr, stdtrit

    freedom = mean.clusters - 1
    half = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * mean.stderr
    p_value = 2.0 * float(stdtr(freedom, -abs(mean.value) / mean.stderr))
    return Interval(mean, mean.value - half, mean.value + half, p_value)
