"""What an interval lets a person say."""

from __future__ import annotations

from typing import Literal

from eval.statistics.interval import Interval

ComparisonVerdict = Literal["improved", "regressed", "equivalent", "inconclusive"]


def verdict(difference: Interval, margin: float = 0.0) -> ComparisonVerdict:
    """`improved` or `regressed` when the interval leaves out zero, else `equivalent` when it lies within ±margin."""
    if difference.low is None or difference.high is None:
        return "inconclusive"
    if difference.low > 0:
        return "improved"
    if difference.high < 0:
        return "regressed"
    return "equivalent" if -margin <= difference.low and difference.high <= margin else "inconclusive"
