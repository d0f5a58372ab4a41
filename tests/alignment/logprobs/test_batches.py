from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alignment.models.packing import batches, longest_first, shares

LENGTHS = st.lists(st.integers(2, 50), max_size=40)


@given(LENGTHS, st.integers(1, 200))
def test_every_index_is_in_one_batch_that_fits_or_stands_alone(lengths: list[int], budget: int) -> None:
    made = list(batches(lengths, longest_first(lengths), budget))
    assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= budget


@given(LENGTHS, st.integers(1, 200))
def test_the_longest_come_first(lengths: list[int], budget: int) -> None:
    order = [lengths[index] for batch in batches(lengths, longest_first(lengths), budget) for index in batch]
    assert order == sorted(lengths, reverse=True)


@given(st.lists(st.integers(2, 3000), max_size=200), st.integers(1000, 100_000))
def test_no_batch_of_some_size_is_padded_by_more_than_a_hundredth(lengths: list[int], budget: int) -> None:
    for batch in batches(lengths, longest_first(lengths), budget):
        padded, tokens = len(batch) * lengths[batch[0]], sum(lengths[index] for index in batch)
        assert padded <= max(512, 1.01 * tokens)


def test_batches_are_as_large_as_the_budget_and_the_padding_allow() -> None:
    assert [len(batch) for batch in batches([100] * 25, range(25), 1000)] == [10, 10, 5]
    assert [len(batch) for batch in batches([1000] * 3 + [500] * 3, range(6), 100_000)] == [3, 3]
    assert [len(batch) for batch in batches([50, 30, 20, 10], range(4), 10_000)] == [4]


@given(LENGTHS, st.integers(1, 5))
def test_shares_cover_every_index_once_and_are_even_in_tokens(lengths: list[int], ranks: int) -> None:
    dealt = shares(lengths, ranks)
    assert len(dealt) == ranks
    assert sorted(index for share in dealt for index in share) == list(range(len(lengths)))
    loads = [sum(lengths[index] for index in share) for share in dealt]
    assert max(loads) - min(loads) <= max(lengths, default=0)
