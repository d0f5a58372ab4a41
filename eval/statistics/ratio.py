"""A ratio of two totals over the same items, such as nats over tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from eval.statistics.interval import Interval, mean_interval
from eval.statistics.mean import clustered_mean


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Σ numerators / Σ denominators over independent items, with its 95 % interval.

    The standard error is that of the linearised items (delta method; Cochran 1977, section 2.11): exact for many
    items, a little small for few. Raises `ValueError` when there are no items, or the denominators add up to nothing.
    """
    total = math.fsum(denominators)
    if not total:
        raise ValueError("a ratio to nothing")
    ratio, mean = math.fsum(numerators) / total, total / len(denominators)
    pairs = zip(numerators, denominators, strict=True)
    linearised = [ratio + (numerator - ratio * denominator) / mean for numerator, denominator in pairs]
    found = clustered_mean(linearised, [str(place) for place in range(len(linearised))])
    return mean_interval(replace(found, value=ratio))
