"""What was planned goes, and what came into use meanwhile stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.store import Commit, ErasedArtifact, Erasure, Ref, Store
from alignment.store.erase import erase, remaining
from alignment_dags.retention.collect import carry_out, plan_of
from alignment_dags.retention.items import Plan


def test_weights_go_and_all_else_of_a_checkpoint_stays(
    store: Store, policies: Callable[..., list[Commit]], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    old, _ = policies(2)
    plan = plan_of(store, ["r"], everything=True, keep=1)
    assert plan.bytes == sum(one.bytes for one in plan.to_erase) > 0
    assert store.find("policy_checkpoint", old.key) == old, "listing removes nothing"
    carry_out(store, plan)
    assert store.commit_of(old.artifact) == old
    assert store.read(old.artifact, "training_rows.parquet") == b"training_rows.parquet of r-policy-0"
    with pytest.raises(ErasedArtifact, match="not among the last 1 policies of r"):
        store.fetch(old.artifact)
    assert plan_of(store, ["r"], everything=True, keep=1).to_erase == []


def test_a_key_that_is_being_built_is_left_alone(
    store: Store, policies: Callable[..., list[Commit]], home: Path
) -> None:
    old, _ = policies(2)
    plan = plan_of(store, ["r"], everything=True, keep=1)
    with store.building("policy_checkpoint", old.key):
        busy = carry_out(store, plan)
    assert busy == [("policy_checkpoint", old.key)]
    assert store.find("policy_checkpoint", old.key) == old


def test_what_came_into_use_since_the_plan_was_made_stays(
    store: Store, policies: Callable[..., list[Commit]], home: Path
) -> None:
    old, _ = policies(2)
    plan = plan_of(store, ["r"], everything=True, keep=1)
    store.write_ref(Ref(artifact=old.artifact), "r", "policy_checkpoint")
    assert sorted(carry_out(store, plan)) == [("policy_checkpoint", "r-policy-0"), ("sft_checkpoint", "r-sft-0")]
    assert store.find("policy_checkpoint", old.key) == old


def test_a_half_done_erasure_is_finished_only_if_nothing_stands_on_it_again(
    store: Store, policies: Callable[..., list[Commit]]
) -> None:
    (old,) = policies(1)
    half = Erasure(commit=old, at="2026-01-01", why="spent", files=["model.safetensors"])
    record = store.path(old.kind, old.key, f"_ERASED-{old.attempt}.json")
    store.replace(record, half.model_dump_json().encode())
    store.write_ref(Ref(artifact=old.artifact), "r", "policy_checkpoint")
    assert carry_out(store, Plan()) == [("policy_checkpoint", old.key)]
    assert (store.fetch(old.artifact) / "model.safetensors").is_file()
    store.remove_ref("r", "policy_checkpoint")
    assert carry_out(store, Plan()) == []
    assert remaining(store, half) == []


def test_a_ref_to_what_was_erased_goes_so_that_it_counts_as_behind(
    store: Store, policies: Callable[..., list[Commit]]
) -> None:
    old, new = policies(2)
    for recipe, commit in (("r", old), ("other", new)):
        store.write_ref(Ref(artifact=commit.artifact), recipe, "policy_checkpoint")
    erase(store, old, ["model.safetensors"], "spent")
    carry_out(store, Plan())
    assert store.read_ref("r", "policy_checkpoint") is None
    assert store.read_ref("other", "policy_checkpoint") is not None
