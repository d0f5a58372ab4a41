"""Refs are replaced whole, listed together and removed singly."""

from __future__ import annotations

from alignment.store import Artifact, Ref, Store


def test_a_ref_is_replaced_whole_and_partitions_may_have_any_name(store: Store) -> None:
    artifact = Artifact(kind="thing", key="k", attempt="a", digest="d")
    assert store.read_ref("recipe", "shard", "day/1 ü") is None
    for run in ("one", "two"):
        store.write_ref(Ref(artifact=artifact, mlflow_run_id=run), "recipe", "shard", "day/1 ü")
    found = store.read_ref("recipe", "shard", "day/1 ü")
    assert found is not None
    assert found.mlflow_run_id == "two"


def test_the_refs_of_all_partitions_are_read_together_and_removed_singly(store: Store) -> None:
    assert store.read_refs("recipe", "shard") == {}
    names = ["day-1", "day/2 ü", "100%25", "x.json"]
    for name in names:
        store.write_ref(Ref(artifact=Artifact(kind="t", key=name, attempt="a", digest="d")), "recipe", "shard", name)
    store.write_ref(Ref(artifact=Artifact(kind="t", key="whole", attempt="a", digest="d")), "recipe", "shard")
    assert {name: ref.artifact.key for name, ref in store.read_refs("recipe", "shard").items()} == dict(
        zip(names, names, strict=True)
    )
    for _ in range(2):
        store.remove_ref("recipe", "shard", "day/2 ü")
    assert set(store.read_refs("recipe", "shard")) == set(names) - {"day/2 ü"}
    assert store.read_ref("recipe", "shard") is not None


def test_a_partition_whose_name_is_too_long_for_a_file_has_no_ref(store: Store) -> None:
    store.write_ref(Ref(artifact=Artifact(kind="t", key="k", attempt="a", digest="d")), "recipe", "shard", "day-1")
    assert store.read_ref("recipe", "shard", "長" * 80) is None
    store.remove_ref("recipe", "shard", "長" * 80)
    assert set(store.read_refs("recipe", "shard")) == {"day-1"}
