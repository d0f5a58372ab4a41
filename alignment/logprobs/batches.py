"""Which sequences go through the model together, and which rank scores which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

PADDING = 0.01
SMALL = 512
"""Padded tokens below which a batch is filled whatever the padding: smaller ones leave a device idle."""


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices by falling length, ties in their order: out of memory shows at once, and padding stays small."""
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def batches(lengths: Sequence[int], order: Sequence[int], budget: int) -> Iterator[Sequence[int]]:
    """All of `order` (longest first) in batches of at most `budget` tokens after padding; at least one in each.

    A batch ends as well where padding would become more than `PADDING` of its tokens, unless it is still small.
    """
    start = 0
    while start < len(order):
        longest, tokens, stop = lengths[order[start]], 0, start
        while stop < len(order):
            padded = (stop + 1 - start) * longest
            tokens += lengths[order[stop]]
            if stop > start and (padded > budget or padded > max(SMALL, (1 + PADDING) * tokens)):
                break
            stop += 1
        yield order[start:stop]
        start = stop


def shares(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Every index to one of `ranks`, dealt by falling length to and fro, so that tokens come out even."""
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for turn, index in enumerate(longest_first(lengths)):
        round_, place = divmod(turn, ranks)
        dealt[ranks - 1 - place if round_ % 2 else place].append(index)
    return dealt
