"""Tango's score interval for the difference of two paired proportions.

Of n pairs a share `gained` went from wrong to right and a share `lost` from right to wrong; δ = gained − lost.
The interval holds every δ that the score test does not reject (Tango 1998, Statistics in Medicine 17:891,
equations 3 to 7). It stays honest where Wald's collapses: with no discordant pair at all it is
±z²/(n + z²). Fagerland, Lydersen and Laake (2014, Statistics in Medicine 33:2850) recommend it for small samples.
"""

from __future__ import annotations

import math

HALVINGS = 60
Z = 1.959963984540054  # standard normal, 97.5 %


def score(gained: float, lost: float, n: float, delta: float) -> float:
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

    `n` may be an effective number of pairs and the shares those of partly won points. Raises `ValueError` for
    shares that are none, or no pairs.
    """
    if n <= 0 or gained < 0 or lost < 0 or gained + lost > 1 + 1e-9:
        raise ValueError(f"{gained} gained and {lost} lost of {n} pairs are no shares")
    estimate = gained - lost

    def end(inside: float, outside: float, limit: float) -> float:
        """Where the score passes `limit`, between an accepted and a rejected difference."""
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            if abs(score(gained, lost, n, middle)) <= limit:
                inside = middle
            else:
                outside = middle
        return inside

    return end(estimate, -1.0, z), end(estimate, 1.0, z)
