"""Shares of battles: each question brings what was won and what was played. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

Battles = tuple[float, float]
"""Won and played; played is above zero."""

ROUNDS = 1000
CONFIDENCE = 0.95


def share(battles: Iterable[Battles]) -> float:
    """Won over played, of all questions together."""
    rows = list(battles)
    return math.fsum(won for won, _ in rows) / math.fsum(played for _, played in rows)


def linearised(battles: Mapping[str, Battles]) -> dict[str, float]:
    """By question, a value whose mean over questions is the share and whose standard error is the share's.

    Taylor's linearisation of a ratio (Cochran 1977, section 6.3): share + (won − share × played) / mean played.
    A value may lie outside 0 to 1.
    """
    if not battles:
        return {}
    whole = share(battles.values())
    typical = math.fsum(played for _, played in battles.values()) / len(battles)
    return {name: whole + (won - whole * played) / typical for name, (won, played) in battles.items()}


def bootstrap_interval(battles: Sequence[Battles], rounds: int = ROUNDS, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the share when questions are drawn again.

    Arena-Hard draws battles; both games of a question, and a verdict counted three times, are one observation
    here, as they are not independent.
    """
    import numpy as np

    table = np.asarray(battles, dtype=float)
    draws = np.random.default_rng(seed).multinomial(len(table), np.full(len(table), 1 / len(table)), rounds) @ table
    low, high = np.quantile(draws[:, 0] / draws[:, 1], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
