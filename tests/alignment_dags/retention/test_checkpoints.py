"""Retention: what is current, champion, aliased, recent or in use keeps its weights; the rest keeps its record."""

from __future__ import annotations

import json
from collections.abc import Callable

from alignment.data.withdrawal import Tombstone, bury
from alignment.store import Commit, Ref, Store
from alignment.store.erase import keys_in_use
from alignment_dags.retention.checkpoints import learned_and_kept, unneeded_checkpoints
from tests.alignment_dags.registry.test_rows import CHAMPION, NEW, trained
from tests.alignment_dags.registry.test_rows import registered as register


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


def test_each_kept_policy_that_learned_withdrawn_rows_is_named_once_with_what_it_takes_to_erase_it(
    store: Store,
) -> None:
    old, spare, clean = (trained(store, key, NEW) for key in ("old", "spare", "clean"))
    champion, other = trained(store, "champion", CHAMPION), trained(store, "other", [("z", "day", "train", None)])
    store.write_ref(Ref(artifact=other), "r", "policy_checkpoint")
    register(store, old, "1")
    store.write_ref(Ref(artifact=register(store, champion, "2")), "r", "registered_model")

    def told(*recipes: str, erased: tuple[str, ...] = ("clean",), aliased: tuple[str, ...] = ()) -> dict[str, str]:
        kept = learned_and_kept(store, recipes, erased, aliased, set())
        return {one.name: one.why for one in kept}

    assert told("r") == {}
    bury(store, "r", "rows", [Tombstone(id=row, at="2026-02-01T00:00:00+00:00") for row in ("a", "b")])
    why = "it learned rows that were withdrawn; `align gc r --keep 0` erases it"
    named = "policy digest-spare (r, never registered)"
    assert told("r", aliased=(spare.digest,)) == {
        "policy digest-old (r version 1)": why,
        "policy digest-champ (r version 2)": f"{why} once it is not the champion",
        named: f"{why} once no recipe uses it and it has no alias",
    }
    assert told("r", erased=("clean", "old", "champion")) == {named: why}
    assert told("another") == {}
    assert clean.key == "clean"
