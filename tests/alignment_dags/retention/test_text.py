"""The text of withdrawn rows goes once nothing stands on it, and not before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.data.files import pin_file
from alignment.data.rows import paired_row
from alignment.data.tokens import TokenSequence
from alignment.data.withdrawal import Tombstone, bury, lift
from alignment.logprobs.token_ids import TokenIds, count_token_ids
from alignment.stages import execute
from alignment.stages.preference_shard import STAGE, ShardRequest
from alignment.store import Artifact, Commit, Ref, Store
from alignment_dags.retention.collect import carry_out, plan_of
from alignment_dags.retention.items import Plan
from alignment_dags.retention.text import withdrawn_ids, withdrawn_text

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
    to_erase, (kept,) = withdrawn_text(store, ["r"], set())
    assert to_erase == []
    assert kept.key == shard.key
    assert kept.why == "rows were withdrawn, but it is the current shard day of r: run `align run` first"
    stands(store, "policy_checkpoint", {"manifest": manifest})
    (gone,), kept_after = withdrawn_text(store, ["r"], set())
    assert (gone.key, kept_after) == (shard.key, [])


OTHER = paired_row("another", "c", "r", "-", 1).row_id


def tokenise(store: Store, *row_ids: str) -> None:
    pair = (TokenSequence((1, 2), (3,)), TokenSequence((1, 2), (4,)))
    for policy in ("one", "other"):
        TokenIds(store, policy).add_ids((row_id, pair) for row_id in row_ids)


def test_the_token_ids_of_a_withdrawn_row_go_though_something_stands_on_the_row(store: Store, shard: Commit) -> None:
    tokenise(store, ROW, OTHER)
    store.write_ref(Ref(artifact=shard.artifact), "r", "preference_shard", "day")
    plan = plan_of(store, ["r"], everything=True, keep=1)
    assert (plan.to_erase, plan.tokenised, len(plan.kept)) == ([], {ROW}, 1)
    assert count_token_ids(store, [ROW, OTHER]) == 4, "listing removes nothing"
    carry_out(store, plan)
    assert (count_token_ids(store, [ROW]), count_token_ids(store, [OTHER])) == (0, 2)
    assert store.fetch(shard.artifact)


def test_the_token_ids_of_a_withdrawn_shards_rows_go_before_its_text(
    store: Store, shard: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    lift(store, "r", "rows", [ROW])
    bury(store, "r", "shards", [Tombstone(id="day", at="2026-01-01", artifacts=[shard.key])])
    tokenise(store, ROW, OTHER)
    (item,), _ = withdrawn_text(store, ["r"], set())
    assert withdrawn_ids(store, ["r"], [item]) == {ROW}
    plan = Plan([item], tokenised=withdrawn_ids(store, ["r"], [item]))
    with monkeypatch.context() as killed:
        killed.setattr("alignment_dags.retention.collect.erase_token_ids", killing)
        with pytest.raises(KeyboardInterrupt):
            carry_out(store, plan)
    assert withdrawn_text(store, ["r"], set())[0] == [item], "it still says which rows it has"
    carry_out(store, plan)
    assert (count_token_ids(store, [ROW]), count_token_ids(store, [OTHER])) == (0, 2)
    assert withdrawn_text(store, ["r"], set())[0] == []


def killing(store: Store, row_ids: set[str]) -> int:
    raise KeyboardInterrupt
