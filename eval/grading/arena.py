"""Arena-Hard (Li et al. 2024): five-level verdicts in both orders, "much better" counted three times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from eval.grading.grading import Answered, Verdicts
from eval.grading.pairs import Pairs, games_of, pair_detail
from eval.suites.samples import Sample
from eval.suites.suite import Suite

# The share of battles that were won. A question adds the weight that was won and the weight that was played.

Battles = tuple[float, float]
"""The weights won and played; the second is above zero."""

RESAMPLES = 1000
CONFIDENCE = 0.95


def share(battles: Iterable[Battles]) -> float:
    """Won divided by played, over all questions together."""
    rows = list(battles)
    return math.fsum(won for won, _ in rows) / math.fsum(played for _, played in rows)


def linearised(battles: Mapping[str, Battles]) -> dict[str, float]:
    """A value for each question. The values' mean is the share, and their standard error is the share's.

    Taylor's linearisation of a ratio (Cochran 1977, section 6.3): share + (won − share × played) / mean played.
    A value may lie outside 0 to 1.
    """
    if not battles:
        return {}
    whole = share(battles.values())
    typical = math.fsum(played for _, played in battles.values()) / len(battles)
    return {name: whole + (won - whole * played) / typical for name, (won, played) in battles.items()}


def bootstrap_interval(battles: Sequence[Battles], resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the share when questions are resampled.

    Arena-Hard resamples battles. Here both games of a question, and a verdict that counts three times, are one
    observation, because they are not independent.
    """
    import numpy as np

    table = np.asarray(battles, dtype=float)
    draws = np.random.default_rng(seed).multinomial(len(table), np.full(len(table), 1 / len(table)), resamples) @ table
    low, high = np.quantile(draws[:, 0] / draws[:, 1], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


ARENA_PROMPT = "arena-hard-v1"
SCORE = "score"


class Arena(Pairs):
    """`score` is the share of battles won against the baseline.

    With two models a Bradley–Terry fit predicts exactly this share. A sample's value is the linearised score, so the
    values' mean is the score and their spread gives its standard error.
    """

    metrics = (SCORE,)
    prompts = (ARENA_PROMPT,)
    plain = reference = ARENA_PROMPT

    def samples(self, suite: Suite, answered: Answered, verdicts: Verdicts) -> list[Sample]:
        """A sample for every item; its value is None unless both games have a verdict."""
        battles = {item.id: _battles(verdicts, item.id) for item, _ in answered}
        values = linearised({name: known for name, known in battles.items() if known is not None})
        samples = []
        for item, response in answered:
            played = battles[item.id]
            more = {} if played is None else {"won": played[0], "battles": played[1]}
            about = pair_detail(verdicts, item, 1, **more)
            samples.append(Sample(suite.name, item.id, item.id, SCORE, values.get(item.id), response.turns[0], about))
        return samples

    def intervals(self, samples: Sequence[Sample], verdicts: Verdicts) -> dict[str, tuple[float, float]]:
        """The bootstrap interval of the score; empty without a measured item."""
        measured = [sample.id for sample in samples if sample.metric == SCORE and sample.value is not None]
        battles = [battle for name in measured if (battle := _battles(verdicts, name)) is not None]
        return {SCORE: bootstrap_interval(battles)} if battles else {}


def _battles(verdicts: Verdicts, name: str) -> tuple[float, float] | None:
    """The weights won and played on a question, over both games; None unless both have a verdict."""
    seen = [judgment and judgment.preference for judgment in games_of(verdicts, name, 1)]
    if seen[0] is None or seen[1] is None:
        return None
    return sum(s.first * s.weight for s in seen if s), sum(s.weight for s in seen if s)


ARENA = Arena()
