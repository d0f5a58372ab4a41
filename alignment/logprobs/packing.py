"""Which sequences go through the model together when completions share their prompt's forward pass.

A prompt and its completions make a group. Groups stand one behind the other in a pass without padding
between them; a pass is rounded up to a multiple of `ROUND` tokens, all the waste there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alignment.tokens import Ids, TokenSequence

ROUND = 16
"""Matrix products of a multiple of 16 rows give each row the same bits, however many rows there are."""

Group = list[int]
"""Indices of sequences with the same prompt ids."""


def by_prompt(sequences: Sequence[TokenSequence], indices: Sequence[int]) -> list[Group]:
    """Indices in groups of the same prompt ids, in order of appearance."""
    groups: dict[Ids, Group] = {}
    for index in indices:
        groups.setdefault(sequences[index].prompt_ids, []).append(index)
    return list(groups.values())


def forwarded(sequences: Sequence[TokenSequence], group: Group) -> int:
    """Tokens a group puts through the model: its prompt once; nothing reads a completion's last token."""
    return len(sequences[group[0]].prompt_ids) + sum(len(sequences[index].completion_ids) - 1 for index in group)


def pack(sequences: Sequence[TokenSequence], indices: Sequence[int], budget: int) -> Iterator[list[Group]]:
    """Passes of at most `budget` tokens, largest groups first; every index in exactly one.

    A group larger than the budget is split and its prompt repeated; a single sequence larger than the
    budget goes alone.
    """
    pieces = [piece for group in by_prompt(sequences, indices) for piece in _split(sequences, group, budget)]
    costs = [forwarded(sequences, piece) for piece in pieces]
    current: list[Group] = []
    used = 0
    for place in sorted(range(len(pieces)), key=lambda place: -costs[place]):
        if current and used + costs[place] > budget:
            yield current
            current, used = [], 0
        current.append(pieces[place])
        used += costs[place]
    if current:
        yield current


def rounded(tokens: int) -> int:
    """The next multiple of `ROUND`."""
    return -(-tokens // ROUND) * ROUND


def _split(sequences: Sequence[TokenSequence], group: Group, budget: int) -> Iterator[Group]:
    """A group in pieces that fit into `budget` tokens where they can."""
    prompt = len(sequences[group[0]].prompt_ids)
    piece: Group = []
    used = prompt
    for index in sorted(group, key=lambda index: -len(sequences[index].completion_ids)):
        more = len(sequences[index].completion_ids) - 1
        if piece and used + more > budget:
            yield piece
            piece, used = [], prompt
        piece.append(index)
        used += more
    yield piece
