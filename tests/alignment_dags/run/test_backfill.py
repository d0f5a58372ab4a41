"""Which shards a backfill is over."""

from __future__ import annotations

import pytest

from alignment.errors import BadInput
from alignment_dags.run.run import Chosen

ORDER = ["mon", "tue", "wed", "thu"]


@pytest.mark.parametrize(
    ("chosen", "shards"),
    [
        (Chosen(), ORDER),
        (Chosen(("wed", "mon")), ["mon", "wed"]),
        (Chosen(()), []),
        (Chosen(first="tue"), ["tue", "wed", "thu"]),
        (Chosen(last="tue"), ["mon", "tue"]),
        (Chosen(first="tue", last="wed"), ["tue", "wed"]),
        (Chosen(first="tue", last="tue"), ["tue"]),
    ],
)
def test_shards_are_chosen_by_name_or_by_the_ends_of_a_stretch(chosen: Chosen, shards: list[str]) -> None:
    assert chosen.of(ORDER) == shards
    assert chosen.everything is (chosen == Chosen())


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        (Chosen(("mon", "sun")), "--shards.*'sun'"),
        (Chosen(first="sun"), "--from.*'sun'"),
        (Chosen(last="sun"), "--to.*'sun'"),
        (Chosen(first="wed", last="tue"), "'wed' comes after 'tue'"),
        (Chosen(("mon",), last="tue"), "either names, or the ends"),
    ],
)
def test_a_choice_that_makes_no_sense_is_bad_input(chosen: Chosen, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        chosen.of(ORDER)
