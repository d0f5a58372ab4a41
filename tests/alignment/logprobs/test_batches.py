from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alignment.logprobs.batches import batches, shares

LENGTHS = st.lists(st.integers(2, 50), max_size=40)


@given(LENGTHS, st.integers(1, 200))
def test_every_index_is_in_one_batch_that_fits_or_stands_alone(lengths: list[int], budget: int) -> None:
    made = list(batches(lengths, budget))
    assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= budget


@given(LENGTHS, st.integers(1, 200))
def test_the_longest_come_first(lengths: list[int], budget: int) -> None:
    order = [lengths[index] for batch in batches(lengths, budget) for index in batch]
    assert order == sorted(lengths, reverse=True)


@given(LENGTHS, st.integers(1, 5))
def test_shares_cover_every_index_once_and_are_even_in_tokens(lengths: list[int], ranks: int) -> None:
    dealt = shares(lengths, ranks)
    assert len(dealt) == ranks
    assert sorted(index for share in dealt for index in share) == list(range(len(lengths)))
    loads = [sum(lengths[index] for index in share) for share in dealt]
    assert max(loads) - min(loads) <= max(lengths, default=0)
