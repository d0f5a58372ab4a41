"""Which sequences go through the model together when completions share their prompt's forward pass.

A prompt and its completions make a group. Groups stand one behind the other in a pass without padding
between them; a pass is rounded up to a multiple of `ROUND` tokens, all the waste there is. The scorer packs
sequences, the trainer whole rows: both sides of a pair enter its loss, so they go through in one pass.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from alignment.data.tokens import Ids, TokenSequence

if TYPE_CHECKING:
    import torch


ROUND = 16
"""Matrix products of a multiple of 16 rows give each row the same bits, however many rows there are."""

Group = list[int]
"""Indices of sequences with the same prompt ids."""


def by_prompt(sequences: Sequence[TokenSequence], indices: Sequence[int], long_from: int | None = None) -> list[Group]:
    """Indices in groups of the same prompt ids, in order of appearance.

    With `long_from` (`alignment.models.rope`) sequences above that length share no prompt with shorter ones, as their
    prompts' states differ.
    """
    groups: dict[tuple[Ids, bool], Group] = {}
    for index in indices:
        sequence = sequences[index]
        groups.setdefault((sequence.prompt_ids, is_long(sequence, long_from)), []).append(index)
    return list(groups.values())


def is_long(sequence: TokenSequence, long_from: int | None) -> bool:
    """Whether more tokens of it are forwarded than `long_from`; its last one is not."""
    return long_from is not None and len(sequence) - 1 > long_from


def forwarded(sequences: Sequence[TokenSequence], group: Group) -> int:
    """Tokens a group puts through the model: its prompt once; nothing reads a completion's last token."""
    return len(sequences[group[0]].prompt_ids) + sum(len(sequences[index].completion_ids) - 1 for index in group)


def pack(
    sequences: Sequence[TokenSequence], indices: Sequence[int], budget: int, long_from: int | None = None
) -> Iterator[list[Group]]:
    """Passes of at most `budget` tokens, largest groups first; every index in exactly one.

    A group larger than the budget is split and its prompt repeated; a single sequence larger than the
    budget goes alone.
    """
    pieces = [piece for group in by_prompt(sequences, indices, long_from) for piece in _split(sequences, group, budget)]
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


def pack_rows(rows: Sequence[Sequence[TokenSequence]], budget: int, long_from: int | None = None) -> list[list[int]]:
    """Indices of rows (each its sequences) in passes of at most `budget` tokens; every row in exactly one.

    First fit by falling length, which leaves the least room unused. A row larger than the budget goes alone.
    """
    costs = [sum(forwarded(row, group) for group in by_prompt(row, range(len(row)), long_from)) for row in rows]
    passes: list[list[int]] = []
    room: list[int] = []
    for index in longest_first(costs):
        place = next((place for place, left in enumerate(room) if costs[index] <= left), None)
        if place is None:
            passes.append([index])
            room.append(budget - costs[index])
        else:
            passes[place].append(index)
            room[place] -= costs[index]
    return passes


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


# Which sequences go through the model together, and which rank scores which.

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


def evenly(costs: Sequence[int], workers: int) -> list[list[int]]:
    """Every index to one of `workers`, the costliest first and each to whoever has least: no two differ by more than
    the costliest one."""
    dealt: list[list[int]] = [[] for _ in range(workers)]
    least = [(0, worker) for worker in range(workers)]  # a heap
    for index in longest_first(costs):
        load, worker = heapq.heappop(least)
        dealt[worker].append(index)
        heapq.heappush(least, (load + costs[index], worker))
    return dealt


# Where every token of one pass stands: what it attends to, its position, and which hidden states are read.


class Segment(NamedTuple):
    """Tokens [start, stop) attend causally to themselves, after all of [prompt_start, prompt_stop)."""

    start: int
    stop: int
    prompt_start: int
    prompt_stop: int

    @property
    def keys(self) -> int:
        """Positions that its queries may look at: the prompt's and its own."""
        return self.prompt_stop - self.prompt_start + self.stop - self.start


class VarlenIndex(NamedTuple):
    """What variable-length attention takes: borders of queries and keys, where keys stand, longest of both.

    `copies` are (tokens, places): where each token's first copy stands among the gathered keys, then the second copy of
    those that have two, and so on; no token is twice in one of them.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    where: torch.Tensor
    longest_query: int
    longest_key: int
    copies: tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass(frozen=True)
class Layout:
    """One pass of `tokens` tokens; ids and positions are [1, tokens].

    `reads` [completion tokens], on the CPU, is where the hidden state stands that predicts each token of the
    completions, sequence by sequence in the order of `rows`. `long` [1, tokens] marks the tokens of long sequences
    (`is_long`) on models for which that makes a difference.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    segments: tuple[Segment, ...]
    reads: torch.Tensor
    rows: tuple[TokenSequence, ...]
    long: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """Positions of the pass."""
        return self.ids.shape[1]

    @cached_property
    def sizes(self) -> list[int]:
        """Tokens of each segment; segments stand one behind the other and cover the pass."""
        return [segment.stop - segment.start for segment in self.segments]

    @cached_property
    def prompts(self) -> list[int | None]:
        """For each segment the index of the segment that is its prompt; None for one that has none."""
        index = {(segment.start, segment.stop): place for place, segment in enumerate(self.segments)}
        return [index.get((segment.prompt_start, segment.prompt_stop)) for segment in self.segments]

    def mask(self, place: int, window: int | None) -> torch.Tensor | None:
        """What the tokens of a segment see [tokens, keys], True for seen; None where plain causal attention says it.

        Made once for all layers. With a window w a token sees itself and the w - 1 before it.
        """
        import torch

        segment = self.segments[place]
        before, reach = segment.prompt_stop - segment.prompt_start, segment.keys if window is None else window
        if not before and reach >= segment.keys:
            return None
        key = self.sizes[place], before, min(reach, segment.keys)
        if key not in self._masks:
            seen = torch.ones(self.sizes[place], segment.keys, dtype=torch.bool, device=self.ids.device)
            self._masks[key] = seen.tril(before).triu(before - reach + 1)
        return self._masks[key]

    @cached_property
    def _masks(self) -> dict[tuple[int, int, int], torch.Tensor]:
        return {}

    @cached_property
    def remembered(self) -> dict[Any, Any]:
        """What attention made of the layout, for its next layers."""
        return {}

    @cached_property
    def varlen(self) -> VarlenIndex:
        """Where each segment's queries and keys are, as variable-length attention takes it."""
        import torch

        device = self.ids.device
        lengths = [[segment.stop - segment.start for segment in self.segments], [s.keys for s in self.segments]]
        borders = [torch.tensor([0, *each]).cumsum(0).to(device, torch.int32) for each in lengths]
        where = [
            torch.cat([torch.arange(s.prompt_start, s.prompt_stop), torch.arange(s.start, s.stop)])
            for s in self.segments
        ]
        keys = torch.cat(where)
        return VarlenIndex(
            borders[0], borders[1], keys.to(device), max(lengths[0]), max(lengths[1]), _copies(keys, device)
        )


def _copies(where: torch.Tensor, device: torch.device) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """The places of `where` by how often what stands there was named before."""
    import torch

    places = where.argsort(stable=True)
    tokens = where[places]
    firsts = torch.cat([torch.ones(1, dtype=torch.bool), tokens[1:] != tokens[:-1]]).nonzero()[:, 0]
    counts = torch.diff(firsts, append=torch.tensor([len(tokens)]))
    turn = torch.arange(len(tokens)) - firsts.repeat_interleave(counts)
    return tuple(
        (tokens[turn == each].to(device), places[turn == each].to(device)) for each in range(int(counts.max()))
    )


def lay_out(
    groups: Sequence[Sequence[TokenSequence]], device: torch.device, fill: int = 0, long_from: int | None = None
) -> Layout:
    """Groups of sequences with one prompt each, one behind the other: prompt, then its completions.

    Positions restart behind the prompt with every completion. A completion's last token is left out, for
    nothing reads its hidden state. What rounds the pass up, or fills it up to `fill` tokens, is a segment of its own.
    """
    import torch

    ids: list[int] = []
    positions: list[int] = []
    reads: list[int] = []
    segments: list[Segment] = []

    def put(tokens: Sequence[int], position: int, prompt: tuple[int, int] | None = None) -> tuple[int, int]:
        span = len(ids), len(ids) + len(tokens)
        if tokens:
            segments.append(Segment(*span, *(prompt or (span[0], span[0]))))
        ids.extend(tokens)
        positions.extend(range(position, position + len(tokens)))
        return span

    long: list[bool] = []
    for group in groups:
        prompt_ids = group[0].prompt_ids
        prompt = put(prompt_ids, 0)
        for row in group:
            start, stop = put(row.completion_ids[:-1], len(prompt_ids), prompt)
            reads += [prompt[1] - 1, *range(start, stop)]
        long += [is_long(group[0], long_from)] * (len(ids) - len(long))
    put([0] * (max(rounded(len(ids)), fill) - len(ids)), 0)
    long += [False] * (len(ids) - len(long))
    return Layout(
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        tuple(segments),
        torch.tensor(reads),
        tuple(row for group in groups for row in group),
        None if long_from is None else torch.tensor([long], device=device),
    )
