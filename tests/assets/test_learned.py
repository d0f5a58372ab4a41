"""How many of the rows that a policy learned were withdrawn since."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.data.withdrawal import Tombstone, What, bury
from alignment.store import Artifact, Store
from alignment.store.erase import erase
from alignment_dags.retention.text import ids_instead
from assets.learned import WithdrawnSince, withdrawn_since
from tests.alignment_dags.registry.test_rows import CHAMPION, NEW, put, trained


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def withdraw(store: Store, what: What, *ids: str, artifacts: tuple[str, ...] = ()) -> None:
    at = "2026-02-01T00:00:00+00:00"
    bury(store, "r", what, [Tombstone(id=id, at=at, artifacts=list(artifacts)) for id in ids])


def since(store: Store, policy: Artifact, recipe: str = "r") -> WithdrawnSince | None:
    return withdrawn_since(store, recipe, store.commit_of(policy))


def test_rows_count_that_the_policy_was_trained_on_and_none_that_it_held_out_or_dropped(store: Store) -> None:
    policy = trained(store, "policy", NEW, drops=("f",))
    assert since(store, policy) is None
    withdraw(store, "rows", "c", "d", "f", "unknown")
    assert since(store, policy) is None
    withdraw(store, "rows", "b", "e")
    found = since(store, policy)
    assert found == WithdrawnSince(2) and since(store, policy, "another") is None
    assert found.told() == "2 of its rows were withdrawn since (align prefs withdraw)"


def test_of_a_withdrawn_shard_every_row_counts_that_was_trained_on_as_one_of_it_and_each_once(store: Store) -> None:
    policy = trained(store, "policy", NEW)
    withdraw(store, "shards", "tuesday")
    assert since(store, policy) == WithdrawnSince(2), "e and f; b is a row of monday's"
    withdraw(store, "rows", "b", "e")
    assert since(store, policy) == WithdrawnSince(3)


def test_a_shard_that_had_another_name_when_it_was_trained_on_is_known_by_what_was_built_of_it(store: Store) -> None:
    policy = trained(store, "policy", NEW)
    built = store.commit_of(store.commit_of(policy).inputs["manifest"]).inputs["shards.tuesday"]
    withdraw(store, "shards", "renamed", artifacts=(built.key,))
    assert since(store, policy) == WithdrawnSince(2)


def test_the_rows_of_an_average_s_parts_are_its_own_and_those_of_a_reference_are_not(store: Store) -> None:
    champion = trained(store, "champion", CHAMPION)
    new = trained(store, "new", NEW, reference=champion)
    withdraw(store, "rows", "a", "c")
    found = since(store, new)
    assert found == WithdrawnSince(0, of_reference=2)
    assert found.told() == "its reference learned 2 rows that were withdrawn since (align prefs withdraw)"
    parts = {"parts.policy": new, "parts.champion": champion}
    average = since(store, trained(store, "average", NEW, checkpoint=new, **parts))
    assert average == WithdrawnSince(2)
    withdraw(store, "rows", "b")
    assert since(store, new) == WithdrawnSince(1, of_reference=2)
    assert WithdrawnSince(1, 2).told() == "1 of its rows was withdrawn since (align prefs withdraw)"


def test_a_demonstration_counts_after_its_text_was_erased_too(store: Store) -> None:
    def write(folder: Path) -> None:
        for name, ids in (("train", ["x", "y"]), ("held_out", ["z"])):
            pq.write_table(pa.table({"row_id": ids}), folder / f"{name}.parquet")

    dataset = put(store, "sft_dataset", "dataset", write, summary={"rows": 3, "train": 2, "held_out": 1})
    sft = put(store, "sft_checkpoint", "sft", inputs={"dataset": dataset})
    policy = trained(store, "policy", NEW, checkpoint=sft)
    mixed = trained(store, "mixed", NEW, sft_dataset=dataset)
    withdraw(store, "demonstrations", "y", "z")
    assert since(store, policy) == since(store, mixed) == WithdrawnSince(1)
    commit = store.commit_of(dataset)
    erase(store, commit, ["train.parquet", "held_out.parquet"], "rows were withdrawn", ids_instead(store, commit))
    assert since(store, policy) == since(store, mixed) == WithdrawnSince(1), "z was held out"


def test_where_the_manifest_is_gone_the_training_s_own_record_says_which_rows_it_learned(store: Store) -> None:
    policy = trained(store, "policy", NEW)
    withdraw(store, "rows", "b", "c")
    manifest = store.commit_of(store.commit_of(policy).inputs["manifest"])
    erase(store, manifest, ["split.parquet"], "for this test")
    assert since(store, policy) == WithdrawnSince(1)
