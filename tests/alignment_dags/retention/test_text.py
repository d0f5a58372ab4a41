"""The text of withdrawn rows goes once nothing stands on it, and not before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.data.files import pin_file
from alignment.data.rows import paired_row
from alignment.data.withdrawal import Tombstone, bury
from alignment.stages import execute
from alignment.stages.preference_shard import STAGE, ShardRequest
from alignment.store import Artifact, Commit, Ref, Store
from alignment_dags.retention.text import withdrawn_text

ROW = paired_row("p", "c", "r", "-", 1).row_id


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    bury(store, "r", "rows", [Tombstone(id=ROW, at="2026-01-01")])
    return store


@pytest.fixture
def shard(store: Store, tmp_path: Path) -> Commit:
    path = tmp_path / "day.jsonl"
    path.write_text(json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"}) + "\n", encoding="utf-8")
    return execute(STAGE, ShardRequest(file=pin_file(str(path))), store)


def stands(store: Store, kind: str, inputs: dict[str, Artifact]) -> Artifact:
    """A current artifact of recipe r."""
    commit = store.commit(
        store.begin(kind, "k"),
        digest=f"of {kind}",
        stage=kind,
        code_version=1,
        inputs=inputs,
        summary={},
        environment={},
        started_at="",
        seconds=0.0,
    )
    store.write_ref(Ref(artifact=commit.artifact), "r", kind)
    return commit.artifact


def test_what_a_manifest_pins_stays_until_its_policy_is_trained(store: Store, shard: Commit) -> None:
    manifest = stands(store, "preference_manifest", {"shards.day": shard.artifact})
    doomed, (kept,) = withdrawn_text(store, ["r"], set())
    assert doomed == []
    assert kept.key == shard.key
    assert kept.why == "rows were withdrawn, but it is the current shard day of r: run `align run` first"
    stands(store, "policy_checkpoint", {"manifest": manifest})
    (gone,), kept_after = withdrawn_text(store, ["r"], set())
    assert (gone.key, kept_after) == (shard.key, [])
