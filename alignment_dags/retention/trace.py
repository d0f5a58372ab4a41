"""The trace that training leaves on a pair: its margin beside those of matched pairs that the policy never saw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from alignment.errors import BadInput
from eval.statistics import mean_interval, two_way_mean

CALIPER = 0.25
"""How far a row may be from its match, in standard deviations: Rosenbaum and Rubin's (1985, The American Statistician
39:33). In Cochran and Rubin (1973, Sankhya A 35:417) 0.2 removes about 99 % of a bias in one variable, and 0.4 about
95 %."""


@dataclass(frozen=True)
class Measured:
    """A pair under a policy: its margin in nats (the implicit reward of the chosen side minus the rejected side's), and
    what it is matched by: the start checkpoint's margin, the tokens of both sides, and the recipe's source that it is
    of (empty where that is not known, and for a recipe with one source). Pairs of one `prompt` are not independent;
    None stands for a prompt of its own."""

    margin: float
    ref_margin: float
    tokens: int
    source: str = ""
    prompt: str | None = None


class Trace(BaseModel):
    """Mean margins of `rows` withdrawn rows and of their matches under one policy, and the difference with its 95 %
    interval (None for fewer than two matches). `rank` is the mean share of the unseen pairs of a row's source with a
    lower margin: about a half for rows that are like them. Not among `rows` are `unmatched` ones that no unseen pair is
    like, and `dropped` ones that the recipe's token policy drops."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    matches: int
    margin: float
    matched_margin: float
    difference: float
    low: float | None
    high: float | None
    rank: float
    unmatched: int = 0
    dropped: int = 0


def trace(withdrawn: Sequence[Measured], unseen: Sequence[Measured]) -> Trace:
    """The withdrawn rows beside unseen ones: each is matched with the unseen pair of its source that is nearest by the
    start checkpoint's margin and by length, both in standard deviations of that source's unseen pairs. A row whose
    source has no unseen pair is matched among all. A row that no unseen pair is like is left out (`_Peers.match`).

    Sources may ask for opposite things, so that a pair of another source says nothing of what a row would be unseen.
    Rows are clustered by their prompt, and by that of their match. Raises `BadInput` where no row has a match, and
    `ValueError` without rows on either side.
    """
    if not withdrawn or not unseen:
        raise ValueError("nothing to compare")
    of_source: dict[str, dict[int, Measured]] = {}
    for place, pair in enumerate(unseen):
        of_source.setdefault(pair.source, {})[place] = pair
    by_source = {source: _Peers(pairs) for source, pairs in of_source.items()}
    every = _Peers(dict(enumerate(unseen)))
    peers = [by_source.get(row.source, every) for row in withdrawn]
    found = [(row, of, of.match(row)) for row, of in zip(withdrawn, peers, strict=True)]
    matched = [(row, of, place) for row, of, place in found if place is not None]
    if not matched:
        lead = "the withdrawn row" if len(withdrawn) == 1 else f"each of the {len(withdrawn)} withdrawn rows"
        raise BadInput(
            f"{lead} is unlike every held-out pair, by the start checkpoint's margin or by length, and so can be"
            " compared with none: nothing can be said of a trace"
        )
    differences = [row.margin - unseen[place].margin for row, _, place in matched]
    prompts = [f"row {number}" if row.prompt is None else row.prompt for number, (row, _, _) in enumerate(matched)]
    of_matches = [unseen[place].prompt or str(place) for _, _, place in matched]
    interval = mean_interval(two_way_mean(differences, prompts, of_matches))
    return Trace(
        rows=len(matched),
        matches=len({place for _, _, place in matched}),
        margin=_mean([row.margin for row, _, _ in matched]),
        matched_margin=_mean([unseen[place].margin for _, _, place in matched]),
        difference=interval.mean.value,
        low=interval.low,
        high=interval.high,
        rank=_mean([_rank(row.margin, of.margins) for row, of, _ in matched]),
        unmatched=len(withdrawn) - len(matched),
    )


class _Peers:
    """The unseen pairs that a row may be matched with, by place, and how they spread."""

    def __init__(self, pairs: Mapping[int, Measured]) -> None:
        self.margins = [pair.margin for pair in pairs.values()]
        self._positions = {place: _position(pair) for place, pair in pairs.items()}
        variables = list(zip(*self._positions.values(), strict=True))
        self._ranges = [(min(values), max(values)) for values in variables]
        self._scales = [_deviation(values) for values in variables]

    def match(self, row: Measured) -> int | None:
        """The place of the nearest pair; None if it is farther than the caliper, or the row outside of their range.

        At the edge the caliper is not enough: rows just outside all have their match on the same side, so what is left
        of the bias does not cancel out (the common support of Dehejia and Wahba 1999, JASA 94:1053).
        """
        at = _position(row)
        if any(not low <= value <= high for value, (low, high) in zip(at, self._ranges, strict=True)):
            return None

        def distance(place: int) -> float:
            apart = zip(at, self._positions[place], self._scales, strict=True)
            return math.hypot(*((mine - other) / scale for mine, other, scale in apart))

        nearest = min(self._positions, key=distance)
        return nearest if distance(nearest) <= CALIPER else None


def _position(pair: Measured) -> tuple[float, float]:
    """What pairs are matched by: the start checkpoint's margin, and the logarithm of the length."""
    return pair.ref_margin, math.log(pair.tokens)


def _rank(value: float, others: Sequence[float]) -> float:
    """The share of the others that are lower; of equal ones a half counts."""
    return _mean([(other < value) + 0.5 * (other == value) for other in others])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _deviation(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(_mean([(value - mean) ** 2 for value in values])) or 1.0
