"""The rows of a model are those of every training that its weights came from, each once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.data.manifest import SPLIT_SCHEMA
from alignment.store import Artifact, Commit, Store
from alignment_dags.registry.rows import rows_of

Row = tuple[str, str, str, str | None]
Write = Callable[[Path], object]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def put(store: Store, kind: str, key: str, write: Write | None = None, **rest: Any) -> Artifact:
    """An artifact of recipe r; `write` fills its folder."""
    attempt = store.begin(kind, key)
    (attempt.path / "model.safetensors").write_text(key)
    if write is not None:
        write(attempt.path)
    given = {"inputs": {}, "summary": {}} | rest
    about = {"stage": kind, "code_version": 1, "environment": {"recipe": "r"}}
    started_at = "2026-01-01T00:00:00+00:00"
    commit: Commit = store.commit(attempt, digest=f"digest-{key}", started_at=started_at, seconds=0.0, **about, **given)
    return commit.artifact


def pinned(store: Store, key: str, rows: list[Row]) -> Artifact:
    """A manifest with these rows, and its shards."""
    table = pa.Table.from_pylist([dict(zip(SPLIT_SCHEMA.names, row, strict=True)) for row in rows], SPLIT_SCHEMA)
    names = sorted({shard for _, shard, _, _ in rows})
    shards = {f"shards.{name}": put(store, "preference_shard", f"{key}-{name}") for name in names}
    write = lambda folder: pq.write_table(table, folder / "split.parquet")  # noqa: E731
    return put(store, "preference_manifest", key, write, inputs=shards)


def trained(store: Store, key: str, rows: list[Row], drops: tuple[str, ...] = (), **inputs: Artifact) -> Artifact:
    """A policy of these rows, of which its training dropped some as too long."""
    record = [
        {"row_id": row, "split": "dropped" if row in drops else split, "reason": "too long" if row in drops else reason}
        for row, _, split, reason in rows
    ]
    schema = pa.schema([field for field in SPLIT_SCHEMA if field.name != "shard"])
    table = pa.Table.from_pylist(record, schema)
    write = lambda folder: pq.write_table(table, folder / "training_rows.parquet")  # noqa: E731
    start = {} if "checkpoint" in inputs else {"checkpoint": put(store, "sft_checkpoint", f"sft-of-{key}")}
    manifest = pinned(store, f"manifest-of-{key}", rows)
    return put(store, "policy_checkpoint", key, write, inputs={"manifest": manifest, **start, **inputs})


def registered(store: Store, policy: Artifact, version: str = "1") -> Artifact:
    about = {"registered": True, "model": "m", "version": version}
    return put(store, "registered_model", f"registered-{version}", inputs={"policy": policy}, summary=about)


def told(store: Store) -> list[Row]:
    table = rows_of(store, "m")
    assert table.schema.names == SPLIT_SCHEMA.names
    return [tuple(row.values()) for row in table.to_pylist()]  # type: ignore[misc]


CHAMPION: list[Row] = [
    ("a", "monday", "train", None),
    ("b", "monday", "held_out", None),
    ("c", "monday", "train", None),
    ("d", "monday", "dropped", "near-duplicate"),
]
NEW: list[Row] = [
    ("b", "monday", "train", None),
    ("c", "monday", "held_out", None),
    ("d", "monday", "held_out", None),
    ("e", "tuesday", "train", None),
    ("b", "tuesday", "dropped", "duplicate"),
    ("f", "tuesday", "train", None),
]


def test_an_average_names_the_rows_of_all_its_parts_and_train_wins_over_held_out_over_dropped(store: Store) -> None:
    champion = trained(store, "champion", CHAMPION)
    new = trained(store, "new", NEW, drops=("f",))
    parts = {"parts.policy": new, "parts.champion": champion}
    registered(store, trained(store, "average", NEW, drops=("f",), checkpoint=new, **parts))
    assert told(store) == [
        ("b", "monday", "train", None),
        ("d", "monday", "held_out", None),
        ("e", "tuesday", "train", None),
        ("b", "tuesday", "dropped", "duplicate"),
        ("f", "tuesday", "dropped", "too long"),
        ("a", "monday", "train", None),
        ("c", "monday", "train", None),
    ]


def test_a_chain_has_the_rows_that_an_earlier_link_was_trained_on_and_this_one_left_out(store: Store) -> None:
    first = trained(store, "first", CHAMPION)
    left = [(row, shard, "dropped" if row == "a" else split, why) for row, shard, split, why in CHAMPION]
    registered(store, trained(store, "second", left, checkpoint=first))
    assert told(store) == [*CHAMPION[1:], CHAMPION[0]]


def test_a_row_that_two_trainings_found_in_two_shards_was_trained_on_once(store: Store) -> None:
    first = trained(store, "first", [("a", "monday", "train", None), ("b", "monday", "train", None)])
    again: list[Row] = [("a", "friday", "train", None), ("b", "friday", "held_out", None)]
    registered(store, trained(store, "second", again, checkpoint=first))
    assert told(store) == [("a", "friday", "train", None), ("b", "monday", "train", None)]


def test_one_training_has_the_rows_of_its_manifest_as_they_stand(store: Store) -> None:
    registered(store, trained(store, "only", NEW))
    assert told(store) == NEW
