"""Which of a prompt's scored answers become preference pairs: pure, so that every rule is a unit test."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from alignment.recipe.generate import Pairing

TOO_FEW = "fewer than two distinct answers"
EQUAL = "all scores are equal"
CLOSE = "scores differ by less than min_gap"
NO_WEAK = "no answer of the weak generator"


@dataclass(frozen=True)
class Candidate:
    """One answer to a prompt. `score` is None where no scorer could score it, for the reason `failed`."""

    text: str
    k: int = 0
    tokens: int = 0
    ended: bool = True
    score: float | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Made:
    """Pairs (better, worse) of one prompt, and why there are no others: reason to number of pairs or, where there is
    no pair at all, 1."""

    pairs: tuple[tuple[Candidate, Candidate], ...]
    left_out: dict[str, int]


def usable(candidates: Sequence[Candidate]) -> tuple[list[Candidate], dict[str, int]]:
    """The answers that may be in a pair, each text once, and why the others may not."""
    kept: dict[str, Candidate] = {}
    left_out: dict[str, int] = {}
    for candidate in candidates:
        reason = (
            "cut at max_new_tokens"
            if not candidate.ended
            else "empty answer"
            if not candidate.text.strip()
            else "the same answer again"
            if candidate.text in kept
            else None
        )
        if reason is None:
            kept[candidate.text] = candidate
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    return list(kept.values()), left_out


def paired(
    candidates: Sequence[Candidate], rule: Pairing, min_gap: float = 0.0, top_k: int = 1, draw: str = ""
) -> Made:
    """The pairs that a rule makes of the usable answers to a prompt; `draw` seeds what is drawn.

    Scores decide, and of equal ones the number `k`. A pair has a better and a worse score, at least `min_gap` apart.
    """
    if len(candidates) < 2:
        return Made((), {TOO_FEW: 1})
    scored = [candidate for candidate in candidates if candidate.score is not None]
    left_out: dict[str, int] = {}
    for candidate in candidates:
        if candidate.score is None:
            reason = f"no score: {candidate.failed}"
            left_out[reason] = left_out.get(reason, 0) + 1
    if len(scored) < 2:
        return Made((), left_out)
    order = sorted(scored, key=lambda candidate: (-_score(candidate), candidate.k))
    best, worst = order[0], order[-1]
    if _score(best) == _score(worst):
        return Made((), left_out | {EQUAL: 1})
    if rule == "best_random":
        below = [candidate for candidate in order if _score(candidate) < _score(best)]
        chosen = [(best, random.Random(draw).choice(below))]
    elif rule == "margin":
        chosen = list(combinations(order, 2))
    elif rule == "top_k":
        chosen = list(zip(order[: len(order) // 2], reversed(order[(len(order) + 1) // 2 :]), strict=True))[:top_k]
    else:
        chosen = [(best, worst)]
    unequal = [(better, worse) for better, worse in chosen if _score(better) > _score(worse)]
    pairs = tuple((better, worse) for better, worse in unequal if _score(better) - _score(worse) >= min_gap)
    if close := len(unequal) - len(pairs):
        left_out[CLOSE] = close
    return Made(pairs, left_out)


def delta_pairs(strong: Sequence[Candidate], weak: Sequence[Candidate]) -> Made:
    """Each answer of the strong generator with the weak one's of the same place; a text that both wrote is no pair."""
    if not strong or not weak:
        return Made((), {NO_WEAK if strong else TOO_FEW: 1})
    pairs = tuple((better, worse) for better, worse in zip(strong, weak, strict=False) if better.text != worse.text)
    return Made(pairs, {} if pairs else {TOO_FEW: 1})


def _score(candidate: Candidate) -> float:
    assert candidate.score is not None
    return candidate.score
