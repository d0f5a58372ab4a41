"""Equal ids meet, whatever part of them is in memory; what is no id is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.data import duplicates as id_groups
from alignment.data.duplicates import IdGroups, binary_ids
from alignment.store import CorruptArtifact

halves = st.sampled_from(["0" * 16, "0" * 15 + "1", "8" + "0" * 15, "f" * 16])
ids = st.builds(str.__add__, halves, halves)
"""Few, so that they repeat and share either half."""


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(st.lists(ids, max_size=12), max_size=8), at_once=st.integers(1, 40))
def test_every_id_comes_once_with_its_numbers_in_the_order_they_were_added(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[str]], at_once: int
) -> None:
    expected: dict[str, list[int]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_groups, "ROWS_AT_ONCE", at_once)
        groups = IdGroups(tmp_path_factory.mktemp("groups") / "ids", sum(map(len, batches)))
        for batch in batches:
            start = sum(map(len, expected.values()))
            groups.add(binary_ids(pa.chunked_array([batch], pa.string())), np.arange(start, start + len(batch)))
            for number, one in enumerate(batch, start):
                expected.setdefault(one, []).append(number)
        found = [list(group) for begins, told in groups for group in np.split(told, np.flatnonzero(begins))[1:]]
    assert sorted(found) == sorted(expected.values())


def test_ids_are_read_as_the_numbers_they_spell() -> None:
    spelled = pa.chunked_array([["0" * 15 + "a" + "f" * 16], [], ["f" * 31 + "e"]], pa.string())
    assert binary_ids(spelled).tolist() == [[10, 2**64 - 1], [2**64 - 1, 2**64 - 2]]
    assert binary_ids(spelled.slice(1)).tolist() == [[2**64 - 1, 2**64 - 2]]
    spelled = pa.chunked_array([["0" * 32, "0" * 31 + "1", "0" * 31 + "2"]], pa.string())
    assert binary_ids(spelled.slice(1, 1)).tolist() == [[0, 1]]
    assert binary_ids(pa.chunked_array([], pa.string())).shape == (0, 2)


@pytest.mark.parametrize("bad", ["", "a" * 31, "a" * 33, "g" * 32, " " * 32, "é" * 16, None])
def test_what_is_no_row_id_is_refused(bad: str | None) -> None:
    with pytest.raises(CorruptArtifact, match="32 hex digits"):
        binary_ids(pa.chunked_array([["a" * 32, bad]], pa.string()))
