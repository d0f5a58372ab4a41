"""A policy's rows are the manifest's, each joined with its place, whatever order a shard's rows stand in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.data.manifest import read_manifest
from alignment.data.rows import write_rows
from alignment.data.tokens import Tokenization
from alignment.methods.dpo import Dpo
from alignment.recipe import TokenPolicy
from alignment.stages import Context
from alignment.store import CorruptArtifact
from alignment.store.erase import erase
from alignment.training.pairs import PolicyRows, policy_rows

TOKENS = TokenPolicy(max_length=30)


@pytest.fixture
def rows(lab: Any) -> list[Any]:
    return list(lab.rows(24))


@pytest.fixture
def read(lab: Any, rows: list[Any], tmp_path: Path) -> Callable[..., PolicyRows]:
    """Reads the rows of a one-shard manifest, or of a twin of its shard with the rows given."""
    from alignment.models.checkpoint import load_tokenizer

    checkpoint = lab.checkpoint()
    folder = lab.store.fetch(lab.manifest(checkpoint, rows, tokens=TOKENS, held_out_fraction=0.3))
    manifest = read_manifest(folder)
    tokens = Tokenization(load_tokenizer(lab.store.fetch(checkpoint)), TOKENS)

    def read(twin: list[Any] | None = None) -> PolicyRows:
        (shard,) = manifest.shards
        if twin is not None:
            erase(lab.store, lab.store.commit_of(shard.shard), ["rows.parquet"], "rows were withdrawn")
            lab.publish(
                "preference_shard", shard.row_digest, {}, lambda out: write_rows(out / "rows.parquet", iter(twin))
            )
        assert shard.fingerprint is not None
        return policy_rows(manifest, Context(lab.store, tmp_path, tmp_path), folder, tokens, shard.fingerprint, Dpo())

    return read


def test_a_twin_in_another_order_gives_the_same_pairs(read: Callable[..., PolicyRows], rows: list[Any]) -> None:
    before, after = read(), read(rows[::-1])
    assert before.train and before.held_out and before.dropped()
    for name in ("train", "held_out"):
        assert getattr(after, name) == getattr(before, name)[::-1]
    assert after.record.to_pylist() == before.record.to_pylist()[::-1]
    assert after.record["row_id"].to_pylist() == [row.row_id for row in rows[::-1]]
    assert after.dropped() == before.dropped() == {"too long": before.record["reason"].to_pylist().count("too long")}


@pytest.mark.parametrize("twin", [lambda rows, other: [*rows[1:], *other], lambda rows, other: rows[1:]])
def test_a_twin_with_other_rows_is_refused(
    read: Callable[..., PolicyRows], rows: list[Any], lab: Any, twin: Callable[..., list[Any]]
) -> None:
    with pytest.raises(CorruptArtifact, match="split"):
        read(twin(rows, lab.rows(1, seed=9)))
