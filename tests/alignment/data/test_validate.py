"""A shard is of one kind and holds each row once; nothing goes missing on the way."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from alignment.data.readers import Record
from alignment.data.validate import Validation


def run(values: list[Any]) -> tuple[Validation, list[str]]:
    validation = Validation()
    rows = list(validation.accepted((Record(n, value=v) for n, v in enumerate(values, start=1)), "f"))
    return validation, [row.row_id for row in rows]


def pair(number: int) -> dict[str, str]:
    return {"prompt": f"p{number}", "chosen": "c", "rejected": "r"}


values = st.one_of(
    st.builds(pair, st.integers(0, 4)),
    st.builds(lambda n: {"prompt": str(n), "completion": "c", "label": True}, st.integers(0, 4)),
    st.just("broken"),
)


@given(records=st.lists(values, max_size=15))
def test_every_record_is_a_row_or_in_quarantine_and_never_both(records: list[Any]) -> None:
    validation, ids = run(records)
    assert len(ids) == len(set(ids)) == validation.rows
    assert validation.rows + len(validation.quarantined) == len(records)
    assert sum(validation.reasons.values()) == len(validation.quarantined)


@given(numbers=st.lists(st.integers(0, 30), min_size=1), seed=st.integers(0, 9))
def test_the_digest_does_not_depend_on_the_order_of_the_rows(numbers: list[int], seed: int) -> None:
    shuffled = random.Random(seed).sample(numbers, len(numbers))
    assert run([pair(n) for n in numbers])[0].digest == run([pair(n) for n in shuffled])[0].digest
    assert run([pair(n) for n in numbers])[0].digest != run([pair(n) for n in [*numbers, 99]])[0].digest


def test_the_first_valid_row_decides_the_kind() -> None:
    validation, ids = run(["broken", pair(1), {"prompt": "p", "completion": "c", "label": True}, pair(2)])
    assert validation.kind == "paired"
    assert len(ids) == 2
    assert [entry.reason for entry in validation.quarantined] == ["not an object", "unpaired row among paired ones"]


def test_a_duplicate_is_kept_once_and_says_of_which_row_it_is_one() -> None:
    validation, ids = run([pair(1), pair(2), pair(1), pair(1)])
    assert len(ids) == 2
    assert [(entry.source_row, entry.reason) for entry in validation.quarantined] == [
        (3, "duplicate of row 1"),
        (4, "duplicate of row 1"),
    ]
    assert validation.reasons == {"duplicate": 2}


def test_a_duplicate_in_a_second_file_names_the_first() -> None:
    validation = Validation()
    list(validation.accepted([Record(7, value=pair(1))], "a.jsonl"))
    list(validation.accepted([Record(1, value=pair(1))], "b.jsonl"))
    assert [entry.reason for entry in validation.quarantined] == ["duplicate of a.jsonl row 7"]
