"""Retention: what is current, champion, aliased, recent or in use keeps its weights; the rest keeps its record."""

from __future__ import annotations

import json
from collections.abc import Callable

from alignment.store import Commit, Ref, Store
from alignment.store.erase import keys_in_use
from alignment_dags.retention.checkpoints import unneeded_checkpoints


def spent(store: Store, keep: int, recipes: list[str] | None = None, aliased: tuple[str, ...] = ()) -> list[str]:
    to_erase = unneeded_checkpoints(store, recipes, keep, aliased, keys_in_use(store))
    assert all(item.files == ("model.safetensors",) for item in to_erase)
    return sorted(item.commit.key for item in to_erase)


def test_the_last_policies_of_each_recipe_stay_with_the_sft_checkpoints_below_them(
    store: Store, policies: Callable[..., list[Commit]]
) -> None:
    policies(3)
    policies(2, "other")
    assert spent(store, 2) == ["r-policy-0", "r-sft-0"]
    assert spent(store, 1) == ["other-policy-0", "other-sft-0", "r-policy-0", "r-policy-1", "r-sft-0", "r-sft-1"]
    assert spent(store, 1, ["other"]) == ["other-policy-0", "other-sft-0"]


def test_current_champion_and_aliased_policies_stay_however_old(
    store: Store, policies: Callable[..., list[Commit]], made: Callable[..., Commit]
) -> None:
    old = policies(5)
    store.write_ref(Ref(artifact=old[0].artifact), "r", "policy_checkpoint")
    registration = made(
        "registered_model",
        "registration",
        inputs={"policy": old[1].artifact},
        summary={"registered": True, "model": "m", "version": "1"},
    )
    store.write_ref(Ref(artifact=registration.artifact), "r", "registered_model")
    sft = made("sft_checkpoint", "next-sft")
    store.write_ref(Ref(artifact=sft.artifact), "r", "sft_checkpoint")
    kept_by_alias = (old[2].digest,)
    assert spent(store, 0, aliased=kept_by_alias) == ["r-policy-3", "r-policy-4", "r-sft-3", "r-sft-4"]


def test_refused_candidates_do_not_push_out_what_a_person_may_go_back_to(
    store: Store, policies: Callable[..., list[Commit]], made: Callable[..., Commit]
) -> None:
    made_ones = policies(9)
    for number, registered in ((0, True), (1, True), (2, True), *((number, False) for number in range(3, 9))):
        made(
            "registered_model",
            f"registration-{number}",
            number,
            inputs={"policy": made_ones[number].artifact},
            summary={"registered": registered, "model": "m", "version": str(number)},
        )
    gone = [0, 3, 4, 5, 6]
    assert spent(store, 2) == sorted(f"r-{kind}-{number}" for kind in ("policy", "sft") for number in gone)


def test_what_a_running_build_pins_stays(store: Store, policies: Callable[..., list[Commit]]) -> None:
    old, _ = policies(2)
    with store.building("responses", "k"):
        attempt = store.begin("responses", "k")
        request = {"checkpoint": old.artifact.model_dump(), "suites": {}}
        (attempt.path / "request.json").write_text(json.dumps(request))
        assert keys_in_use(store) == {"r-policy-0", "r-sft-0"}
        assert spent(store, 1) == []
    assert spent(store, 1) == ["r-policy-0", "r-sft-0"], "its builder has ended"


def test_what_the_current_policy_was_trained_against_stays(
    store: Store, policies: Callable[..., list[Commit]], made: Callable[..., Commit]
) -> None:
    """An earlier champion was its reference: with other settings it is trained against that one again."""
    reference, _, last = policies(3)
    inputs = {"checkpoint": last.inputs["checkpoint"], "reference": reference.artifact}
    current = made("policy_checkpoint", "r-policy-3", 3, inputs=inputs)
    store.write_ref(Ref(artifact=current.artifact), "r", "policy_checkpoint")
    assert spent(store, 1) == ["r-policy-1", "r-policy-2", "r-sft-1"]
