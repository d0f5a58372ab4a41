"""Which sequences go through the model together, and which rank scores which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices by falling length, ties in their order: out of memory shows at once, and padding stays small."""
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def next_batch(order: Sequence[int], lengths: Sequence[int], start: int, batch_tokens: int) -> Sequence[int]:
    """From `start` on, as many of `order` as fit into `batch_tokens` padded tokens; at least one."""
    return order[start : start + max(1, batch_tokens // max(1, lengths[order[start]]))]


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[Sequence[int]]:
    """All indices in batches of at most `batch_tokens` tokens after padding, longest first."""
    order = longest_first(lengths)
    start = 0
    while start < len(order):
        batch = next_batch(order, lengths, start, batch_tokens)
        yield batch
        start += len(batch)


def shares(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Every index to one of `ranks`, dealt by falling length to and fro, so that tokens come out even."""
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for turn, index in enumerate(longest_first(lengths)):
        round_, place = divmod(turn, ranks)
        dealt[ranks - 1 - place if round_ % 2 else place].append(index)
    return dealt
