"""Rows are drawn by a hash: the counts are those asked for, and nothing depends on order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.data.manifest import SPLIT_SCHEMA
from alignment.data.mixing import BEYOND, Mix, margins_of, mixed, place_in_draw, quotas, smallest


def mix(weight: float | None = None, max_rows: int | None = None, *shards: str) -> Mix:
    return Mix(shards=shards, weight=weight, max_rows=max_rows)


@pytest.mark.parametrize(
    ("rows", "mixes", "kept"),
    [
        ([100, 100], [mix(1), mix(1)], [100, 100]),
        ([100, 40], [mix(1), mix(1)], [40, 40]),
        ([90, 40], [mix(2), mix(1)], [80, 40]),
        ([100, 1000, 7], [mix(0.7), mix(0.3), mix()], [100, 42, 7]),
        ([100, 1000], [mix(0.5, 30), mix(0.5)], [30, 30]),
        ([100, 0], [mix(1), mix(1)], [0, 0]),
        ([100, 50], [mix(None, 20), mix()], [20, 50]),
        ([3, 1], [mix(0.3), mix(0.1)], [3, 1]),
    ],
)
def test_sources_are_cut_to_their_shares(rows: list[int], mixes: list[Mix], kept: list[int]) -> None:
    assert quotas(rows, mixes) == kept


def places(shard: str, ids: Sequence[str], dropped: Sequence[str] = ()) -> pa.Table:
    splits = ["dropped" if one in dropped else ("held_out" if one.endswith("0") else "train") for one in ids]
    reasons = ["too long" if one in dropped else None for one in ids]
    return pa.table(
        {"row_id": ids, "shard": [shard] * len(ids), "split": splits, "reason": reasons}, schema=SPLIT_SCHEMA
    )


def kept_of(tables: Iterator[pa.Table]) -> set[str]:
    return {row["row_id"] for table in tables for row in table.to_pylist() if row["split"] != "dropped"}


@given(cut=st.integers(0, 30), order=st.permutations(range(30)))
def test_a_bound_takes_the_first_of_the_draw_however_rows_and_shards_lie(cut: int, order: list[int]) -> None:
    ids = [f"r{number}" for number in order]
    shards = {"a": ids[:cut], "b": ids[cut:]}
    tables = [places(name, rows) for name, rows in shards.items()]
    kept = kept_of(mixed(lambda last: iter(tables), list(shards), [mix(None, 12, "a", "b")]))
    assert kept == set(sorted(ids, key=lambda row_id: place_in_draw(0, row_id))[:12])


def test_what_is_left_out_is_named_and_what_was_dropped_does_not_count() -> None:
    asked: list[bool] = []
    tables = [places("a", ["r1", "r2", "r3", "r4"], dropped=["r1", "r2"]), places("b", ["s1", "s2", "s3"])]

    def assigned(last: bool) -> Iterator[pa.Table]:
        asked.append(last)
        return iter(tables)

    told = list(mixed(assigned, ["da", "db"], [mix(1, None, "da"), mix(0.5, None, "db")]))
    assert asked == [False, True]
    assert told[0].equals(tables[0])  # two rows are left, the other has one of three
    reasons = told[1]["reason"].to_pylist()
    assert reasons.count(BEYOND) == 2 and told[1]["split"].to_pylist().count("dropped") == 2
    assert told[1].schema.equals(SPLIT_SCHEMA)
    assert list(mixed(lambda last: iter(tables), ["da", "db"], ())) == tables
    assert list(mixed(lambda last: iter(tables), ["da", "db"], [mix(None, 99, "da", "db")])) == tables


def test_another_seed_draws_other_rows() -> None:
    ids = [f"r{number}" for number in range(50)]
    drawn = [
        kept_of(mixed(lambda last: iter([places("a", ids)]), ["a"], [Mix(shards=("a",), max_rows=10, seed=seed)]))
        for seed in (0, 1)
    ]
    assert [len(rows) for rows in drawn] == [10, 10] and drawn[0] != drawn[1]


def test_the_smallest_margins_are_taken_and_ties_go_by_row_id() -> None:
    row_ids = pa.chunked_array([["d", "b"], ["c", "a", "e"]])
    margins = [np.array([0.5, -1.0]), np.array([0.5, 2.0, 0.5])]
    assert smallest(row_ids, margins, 0.2).to_pylist() == ["b"]
    assert smallest(row_ids, margins, 0.5).to_pylist() == ["b", "c", "d"], "rounded up"
    assert smallest(row_ids, margins, 1.0).to_pylist() == ["b", "c", "d", "e", "a"]
    many = pa.chunked_array([[f"{number:02d}" for number in range(10)]])
    assert len(smallest(many, [np.zeros(10)], 0.2)) == 2, "0.2 of ten are two, whatever 0.2 is in binary"
    assert smallest(pa.chunked_array([], pa.string()), [], 0.5).to_pylist() == []


def test_margins_are_looked_up_by_row_id() -> None:
    logprobs = pa.table({"row_id": ["a", "b"], "chosen_logp": [-1.0, -2.0], "rejected_logp": [-4.0, -1.0]})
    assert margins_of(logprobs, pa.chunked_array([["b", "a"]])).tolist() == [-1.0, 3.0]
