"""Whose rows are new: a champion's own, and those that a sweep or later rounds took a part of, are not."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.recipe import Dpo, TokenPolicy
from alignment.stages import Result, Stage, execute
from alignment.stages.policy import DpoRequest
from alignment.stages.preference_manifest import ManifestRequest, TrainRows
from alignment.store import Artifact, Ref, Store
from assets.building.node import NotNeeded
from assets.building.upstream import Upstream
from assets.new_rows import stands_on
from assets.registered_model import RegistrationRequest
from assets.registration import RegistrationSummary
from tests.assets.test_policy_divergence import nodes
from tests.assets.test_rounds import ROUNDS, made


def manifest(store: Store, **changes: Any) -> Artifact:
    request = ManifestRequest(shards={"day": made(store, "preference_shard")}, held_out_fraction=0.1, **changes)
    stage = Stage("preference_manifest", 1, ManifestRequest, lambda *_: Result(stage.key(request)))
    return execute(stage, request, store).artifact


def policy(store: Store, on: Artifact, start: Artifact, name: str) -> Artifact:
    request = DpoRequest(manifest=on, checkpoint=start, settings=Dpo(), tokens=TokenPolicy(), seed=1)
    stage = Stage("policy_checkpoint", 1, DpoRequest, lambda *_: Result(name))
    artifact = execute(stage, request, store).artifact
    store.write_ref(Ref(artifact=artifact), "small", name)
    return artifact


def registered(store: Store, champion: Artifact, previous: Artifact | None = None) -> Artifact:
    request = RegistrationRequest(
        policy=champion,
        report=champion,
        scores={},
        previous=previous,
        gate=None,
        model_name="small",
        smoke_prompt="Hello",
        precision="float32",
    )
    summary = RegistrationSummary(registered=True, model="small", version="2" if previous else "1")
    stage = Stage("registered_model", 1, RegistrationRequest, lambda *_: Result(champion.digest, summary))
    artifact = execute(stage, request, store).artifact
    store.write_ref(Ref(artifact=artifact), "small", "registered_model")
    return artifact


def test_a_policy_stands_on_the_rows_that_a_point_of_a_sweep_took_some_of(store: Store) -> None:
    start, whole = made(store, "sft_checkpoint"), manifest(store)
    point = policy(store, manifest(store, train_rows=TrainRows(most=5)), start, "point_rows_5/policy_checkpoint")
    assert stands_on(store, point, whole)
    assert not stands_on(store, point, manifest(store, max_length_gap=3))


def test_what_new_rows_are_measured_on_stays_when_rounds_have_made_their_policy(store: Store) -> None:
    """The last round started from the SFT checkpoint, on pairs of its own: the champion before it stays."""
    start, whole = made(store, "sft_checkpoint"), manifest(store)
    store.write_ref(Ref(artifact=whole), "small", "preference_manifest")
    before = policy(store, manifest(store, max_length_gap=3), start, "champion")
    policy(store, whole, start, "round_1/policy_checkpoint")
    last = policy(store, manifest(store, max_length_gap=9), start, "policy_checkpoint")
    node = nodes(rounds=ROUNDS | {"start": "sft"}, evals={"new_rows": {}})["new_rows"]
    registered(store, last, registered(store, before))
    assert node.request(Upstream(store, "small"), None).checkpoint == before
    store.write_ref(Ref(artifact=made(store, "another start")), "small", "sft_checkpoint")
    with pytest.raises(NotNeeded, match="the champion began with another start checkpoint"):
        node.request(Upstream(store, "small"), None)
