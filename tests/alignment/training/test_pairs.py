"""A policy's rows are the manifest's, each joined with its place, whatever order a shard's rows stand in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.data.manifest import read_manifest
from alignment.data.rows import write_rows
from alignment.data.tokens import Tokenization
from alignment.logprobs.token_ids import TokenIds
from alignment.methods.dpo import Dpo
from alignment.recipe import TokenPolicy
from alignment.stages import Context
from alignment.store import CorruptArtifact
from alignment.store.erase import erase
from alignment.training import row_files
from alignment.training.joining import Joining
from alignment.training.pairs import PolicyPair
from alignment.training.row_files import open_rows

TOKENS = TokenPolicy(max_length=30)


class Read(NamedTuple):
    train: list[PolicyPair]
    held_out: list[PolicyPair]
    dropped: dict[str, int]
    record: pa.Table


@pytest.fixture
def rows(lab: Any) -> list[Any]:
    return list(lab.rows(24))


@pytest.fixture
def read(lab: Any, rows: list[Any], tmp_path: Path) -> Callable[..., Read]:
    """Reads the rows of a one-shard manifest, or of a twin of its shard with the rows given."""
    from alignment.models.checkpoint import load_tokenizer

    checkpoint = lab.checkpoint()
    folder = lab.store.fetch(lab.manifest(checkpoint, rows, tokens=TOKENS, held_out_fraction=0.3))
    manifest = read_manifest(folder)
    tokens = Tokenization(load_tokenizer(lab.store.fetch(checkpoint)), TOKENS)

    def read(twin: list[Any] | None = None) -> Read:
        (shard,) = manifest.shards
        if twin is not None:
            erase(lab.store, lab.store.commit_of(shard.shard), ["rows.parquet"], "rows were withdrawn")
            lab.publish(
                "preference_shard", shard.row_digest, {}, lambda out: write_rows(out / "rows.parquet", iter(twin))
            )
        assert shard.fingerprint is not None
        context, record = Context(lab.store, tmp_path, tmp_path), tmp_path / "record.parquet"
        ids, into = TokenIds(lab.store, "policy"), tmp_path / "rows"
        joining = Joining(context, Dpo(), tokens, ids, shard.fingerprint)
        dropped = joining.write(manifest, folder, into, record)
        found = open_rows(tmp_path / "rows", shard.fingerprint)
        return Read(found.train[:], found.held_out[:], dropped, pq.read_table(record))

    return read


def test_a_twin_in_another_order_gives_the_same_pairs(read: Callable[..., Read], rows: list[Any]) -> None:
    before, after = read(), read(rows[::-1])
    assert before.train and before.held_out and before.dropped
    assert after.train == before.train[::-1] and after.held_out == before.held_out[::-1]
    assert after.record.to_pylist() == before.record.to_pylist()[::-1]
    assert after.record["row_id"].to_pylist() == [row.row_id for row in rows[::-1]]
    assert after.dropped == before.dropped == {"too long": before.record["reason"].to_pylist().count("too long")}


def test_pairs_are_read_by_their_place_whatever_batch_it_is_in(
    read: Callable[..., Read], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = read()
    monkeypatch.setattr(row_files, "BATCH_ROWS", 5)
    assert read() == whole
    found = open_rows(tmp_path / "rows", "")
    assert found.train.row_ids.to_pylist() == [pair.row_id for pair in whole.train]
    assert found.train.longest().longest == max(pair.longest for pair in whole.train)
    with pytest.raises(IndexError):
        found.train[len(found.train)]


@pytest.mark.parametrize("twin", [lambda rows, other: [*rows[1:], *other], lambda rows, other: rows[1:]])
def test_a_twin_with_other_rows_is_refused(
    read: Callable[..., Read], rows: list[Any], lab: Any, twin: Callable[..., list[Any]]
) -> None:
    with pytest.raises(CorruptArtifact, match="split"):
        read(twin(rows, lab.rows(1, seed=9)))
