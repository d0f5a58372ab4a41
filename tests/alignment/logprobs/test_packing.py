from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alignment.data.tokens import TokenSequence
from alignment.models.packing import ROUND, forwarded, pack, rounded

SEQUENCES = st.lists(
    st.builds(
        lambda prompt, length, completion: TokenSequence((prompt,) * length, (7,) * completion),
        st.integers(0, 3),
        st.integers(1, 60),
        st.integers(1, 90),
    ),
    max_size=50,
)
BUDGETS = st.integers(1, 400)


@given(SEQUENCES, BUDGETS)
def test_every_sequence_is_in_one_pass_and_every_group_has_one_prompt(
    sequences: list[TokenSequence], budget: int
) -> None:
    passes = list(pack(sequences, range(len(sequences)), budget))
    assert sorted(i for groups in passes for group in groups for i in group) == list(range(len(sequences)))
    assert all(len({sequences[i].prompt_ids for i in group}) == 1 for groups in passes for group in groups)


@given(SEQUENCES, BUDGETS)
def test_a_pass_fits_the_budget_or_is_a_single_sequence(sequences: list[TokenSequence], budget: int) -> None:
    for groups in pack(sequences, range(len(sequences)), budget):
        fits = sum(forwarded(sequences, group) for group in groups) <= budget
        assert fits or [len(group) for group in groups] == [1]


@given(SEQUENCES, BUDGETS)
def test_a_prompt_is_repeated_only_where_its_group_is_larger_than_the_budget(
    sequences: list[TokenSequence], budget: int
) -> None:
    whole: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in enumerate(sequences):
        whole.setdefault(sequence.prompt_ids, []).append(index)
    pieces = [group for groups in pack(sequences, range(len(sequences)), budget) for group in groups]
    for prompt, group in whole.items():
        found = [piece for piece in pieces if sequences[piece[0]].prompt_ids == prompt]
        assert len(found) == 1 or forwarded(sequences, group) > budget


@given(SEQUENCES, BUDGETS)
def test_the_largest_groups_come_first(sequences: list[TokenSequence], budget: int) -> None:
    costs = [forwarded(sequences, g) for groups in pack(sequences, range(len(sequences)), budget) for g in groups]
    assert costs == sorted(costs, reverse=True)


@given(st.integers(1600, 20_000))
def test_rounding_wastes_less_than_one_percent_of_a_usual_pass(tokens: int) -> None:
    assert rounded(tokens) % ROUND == 0
    assert 0 <= rounded(tokens) - tokens < 0.01 * tokens
