"""Where every token of one pass stands: what it attends to, its position, and which hidden states are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from alignment.logprobs.packing import rounded
from alignment.tokens import TokenSequence

if TYPE_CHECKING:
    import torch


class Segment(NamedTuple):
    """Tokens [start, stop) attend causally to themselves, after all of [prompt_start, prompt_stop)."""

    start: int
    stop: int
    prompt_start: int
    prompt_stop: int

    @property
    def keys(self) -> int:
        return self.prompt_stop - self.prompt_start + self.stop - self.start


class VarlenIndex(NamedTuple):
    """What variable-length attention takes: borders of queries and keys, where keys stand, longest of both."""

    queries: torch.Tensor
    keys: torch.Tensor
    where: torch.Tensor
    longest_query: int
    longest_key: int


@dataclass(frozen=True)
class Layout:
    """One pass of `tokens` tokens; ids and positions are [1, tokens].

    `reads` [completion tokens] is where the hidden state stands that predicts each of `targets`, sequence
    by sequence in the order of `rows`; both are on the CPU.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    segments: tuple[Segment, ...]
    reads: torch.Tensor
    rows: tuple[TokenSequence, ...]

    @property
    def tokens(self) -> int:
        return self.ids.shape[1]

    @cached_property
    def varlen(self) -> VarlenIndex:
        import torch

        device = self.ids.device
        lengths = [[segment.stop - segment.start for segment in self.segments], [s.keys for s in self.segments]]
        borders = [torch.tensor([0, *each]).cumsum(0).to(device, torch.int32) for each in lengths]
        where = [
            torch.cat([torch.arange(s.prompt_start, s.prompt_stop), torch.arange(s.start, s.stop)])
            for s in self.segments
        ]
        return VarlenIndex(borders[0], borders[1], torch.cat(where).to(device), max(lengths[0]), max(lengths[1]))


def lay_out(groups: Sequence[Sequence[TokenSequence]], device: torch.device) -> Layout:
    """Groups of sequences with one prompt each, one behind the other: prompt, then its completions.

    Positions restart behind the prompt with every completion. A completion's last token is left out, for
    nothing reads its hidden state. What rounds the pass up is a segment of its own.
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

    for group in groups:
        prompt_ids = group[0].prompt_ids
        prompt = put(prompt_ids, 0)
        for row in group:
            start, stop = put(row.completion_ids[:-1], len(prompt_ids), prompt)
            reads += [prompt[1] - 1, *range(start, stop)]
    put([0] * (rounded(len(ids)) - len(ids)), 0)
    return Layout(
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        tuple(segments),
        torch.tensor(reads),
        tuple(row for group in groups for row in group),
    )
