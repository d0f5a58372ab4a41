"""A night whose reference is the champion: before there is one, when it changes, and when it stays."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.data.withdrawal import Tombstone, bury
from alignment.errors import BadInput
from alignment.stages import Result, Stage, execute
from alignment.stages.policy import DpoRequest
from alignment.stages.policy_logprobs import PolicyLogprobsRequest
from alignment.stages.preference_manifest import ManifestRequest
from alignment.stages.stage import CheckpointSummary
from alignment.store import Artifact, Ref, Store
from alignment.store.erase import erase
from assets.building.node import Node, NotNeeded
from assets.building.upstream import Upstream
from assets.learned import learned_withdrawn
from assets.new_rows import stands_on
from tests.assets.test_generation import GENERATE
from tests.assets.test_new_rows import registered
from tests.assets.test_policy_divergence import nodes, recipe
from tests.assets.test_rounds import ROUNDS, made

AGAINST_CHAMPION: dict[str, Any] = {"generate": GENERATE | {"reference": "champion"}}
LOGPROBS, MANIFEST = "champion/policy_logprobs", "champion/preference_manifest"


def put(store: Store, name: str, artifact: Artifact) -> Artifact:
    """Makes it the node's current artifact."""
    store.write_ref(Ref(artifact=artifact), "small", name)
    return artifact


def pinned(store: Store, request: ManifestRequest) -> Artifact:
    stage = Stage("preference_manifest", 1, ManifestRequest, lambda *_: Result(stage.key(request)))
    return execute(stage, request, store).artifact


def of_day(store: Store, *days: str) -> Artifact:
    """The first manifest as it is with these shards, scored by the SFT checkpoint."""
    shards = {day: made(store, f"preference_shard {day}") for day in days}
    references = {day: made(store, f"reference_logprobs {day}") for day in days}
    request = ManifestRequest(shards=shards, references=references, held_out_fraction=0.1)
    return put(store, "preference_manifest", pinned(store, request))


def train(store: Store, **changes: Any) -> tuple[DpoRequest, Artifact]:
    """Makes the three nodes as a run would, one after the other; the policy is the recipe's then."""
    found = nodes(**AGAINST_CHAMPION, **changes)
    kinds = {LOGPROBS: PolicyLogprobsRequest, MANIFEST: ManifestRequest, "policy_checkpoint": DpoRequest}
    request: Any = None
    for name, kind in kinds.items():
        stage = Stage(name.rpartition("/")[2], 1, kind, lambda request, _: Result(request.model_dump_json()))
        try:
            request = found[name].request(Upstream(store, "small"), None)
        except NotNeeded:
            continue
        put(store, name, execute(stage, request, store).artifact)
    assert isinstance(request, DpoRequest)
    return request, Upstream(store, "small")("policy_checkpoint")


def trained_against_the_first(store: Store) -> tuple[Artifact, Artifact]:
    """The registration of monday's policy, and the policy of tuesday, whose reference that is."""
    made(store, "sft_checkpoint")
    of_day(store, "monday")
    _, first = train(store)
    registration = registered(store, first)
    of_day(store, "tuesday")
    request, second = train(store)
    assert request.reference == first
    return registration, second


def asked(store: Store, name: str = LOGPROBS) -> Any:
    node: Node = nodes(**AGAINST_CHAMPION)[name]
    return node.request(Upstream(store, "small"), None)


def checkpoint(store: Store, kind: str, name: str, tokenizer: str, **inputs: Artifact) -> Artifact:
    about = CheckpointSummary(tokenizer_digest=tokenizer, vocab_size=9)
    stage = Stage(kind, 1, DpoRequest, lambda *_: Result(name, about))
    given = {"settings": recipe().dpo, "tokens": recipe().tokens, "seed": len(name)}
    return execute(stage, DpoRequest(**given, **inputs), store).artifact


def test_the_graph_has_a_set_against_the_champion_behind_the_first_one_and_other_recipes_have_none() -> None:
    found = nodes(**AGAINST_CHAMPION)
    assert found[LOGPROBS].needs == ("preference_manifest",)
    assert found[MANIFEST].needs == ("preference_manifest", LOGPROBS)
    assert found["policy_checkpoint"].needs == (MANIFEST, "sft_checkpoint")
    assert "reference_logprobs" in found, "new rows are measured against the SFT checkpoint all the same"
    plain = nodes(generate=GENERATE)
    assert plain["policy_checkpoint"].needs == ("preference_manifest", "sft_checkpoint")
    assert not any(name.startswith("champion/") for name in plain)
    written = recipe(generate=GENERATE | {"reference": "sft"}).model_dump(mode="json")
    assert written == recipe(generate=GENERATE).model_dump(mode="json"), "no key of an older recipe moves"


def test_before_there_is_a_champion_the_reference_is_the_sft_checkpoint_and_the_keys_are_those_of_it(
    store: Store,
) -> None:
    made(store, "sft_checkpoint")
    first = of_day(store, "monday")
    with pytest.raises(NotNeeded, match="the reference is the SFT checkpoint: there is no champion yet"):
        asked(store)
    request, _ = train(store)
    assert request == nodes(generate=GENERATE)["policy_checkpoint"].request(Upstream(store, "small"), None)
    assert request.reference is None
    node = nodes(**AGAINST_CHAMPION)[MANIFEST]
    assert node.stage.key(node.request(Upstream(store, "small"), None)) == node.stage.key(
        ManifestRequest.model_validate_json(store.read(first, "request.json"))
    )
    commit = store.commit_of(first)
    shown = node.show(commit.model_copy(update={"summary": {}}), store.fetch(first))
    assert shown.markdown["reference"].startswith("the reference is the SFT checkpoint")


def test_each_champion_scores_all_rows_once_and_a_set_keeps_the_reference_it_was_trained_with(store: Store) -> None:
    sft = made(store, "sft_checkpoint")
    of_day(store, "monday")
    _, first = train(store)
    registration = registered(store, first)
    with pytest.raises(NotNeeded, match="with which this set of rows was first trained on"):
        asked(store)  # promoted, and the same rows: nothing is trained again
    of_day(store, "monday", "tuesday")
    request, second = train(store)
    assert (request.checkpoint, request.reference) == (sft, first)
    scored = store.commit_of(Upstream(store, "small")(LOGPROBS))
    assert scored.inputs["checkpoint"] == first
    references = ManifestRequest.model_validate_json(store.read(request.manifest, "request.json")).references
    assert references == dict.fromkeys(("monday", "tuesday"), scored.artifact)

    registration = registered(store, second, registration)
    again, _ = train(store)
    assert again == request, "its own promotion does not make it the reference of its rows"
    other, _ = train(store, optimise={"beta": 0.3})
    assert other.reference == first, "with other settings neither"
    of_day(store, "monday", "tuesday", "wednesday")
    third, _ = train(store)
    assert third.reference == second
    of_day(store, "monday", "wednesday")
    fourth, _ = train(store)
    assert fourth.reference == second, "the gate rejected the third, so the champion stays, and the cache of it"


def test_a_champion_that_cannot_be_the_reference_leaves_it_to_the_sft_checkpoint_and_says_so(store: Store) -> None:
    first = of_day(store, "monday")
    start = put(
        store, "sft_checkpoint", checkpoint(store, "sft_checkpoint", "sft", "a", manifest=first, checkpoint=first)
    )
    other = checkpoint(store, "policy_checkpoint", "other", "b", manifest=first, checkpoint=start)
    registration = registered(store, other)
    of_day(store, "tuesday")
    with pytest.raises(NotNeeded, match="version 1 has another tokenizer"):
        asked(store)
    same = checkpoint(store, "policy_checkpoint", "champion", "a", manifest=first, checkpoint=start)
    registered(store, same, registration)
    assert asked(store).checkpoint == same
    bury(store, "small", "shards", [Tombstone(id="monday", at="2026-01-01T00:00:00+00:00")])
    with pytest.raises(NotNeeded, match="has lost its weights, or learned what was withdrawn"):
        asked(store)


def test_a_policy_that_was_trained_against_one_that_learned_a_withdrawn_shard_has_it_of_it(store: Store) -> None:
    _, second = trained_against_the_first(store)
    bury(store, "small", "shards", [Tombstone(id="monday", at="2026-01-01T00:00:00+00:00")])
    assert learned_withdrawn(Upstream(store, "small"), store.commit_of(second))


def test_rows_that_were_trained_against_a_champion_are_not_scored_by_it_under_another_tokenizer(store: Store) -> None:
    trained_against_the_first(store)
    rows = Upstream(store, "small")("preference_manifest")
    put(store, "sft_checkpoint", checkpoint(store, "sft_checkpoint", "sft", "b", manifest=rows, checkpoint=rows))
    with pytest.raises(NotNeeded, match="version 1 has another tokenizer"):
        asked(store)


def test_a_promotion_while_rows_are_scored_is_named_and_pins_nothing(store: Store) -> None:
    registration, second = trained_against_the_first(store)
    of_day(store, "wednesday")
    stage = Stage("policy_logprobs", 1, PolicyLogprobsRequest, lambda request, _: Result(request.model_dump_json()))
    put(store, LOGPROBS, execute(stage, asked(store), store).artifact)
    assert asked(store, MANIFEST).references
    registered(store, second, registration)
    with pytest.raises(BadInput, match="somebody promoted another version while this ran"):
        asked(store, MANIFEST)


def test_a_set_whose_reference_was_erased_takes_the_champion_of_now(store: Store) -> None:
    made(store, "sft_checkpoint")
    of_day(store, "monday")
    _, first = train(store)
    registration = registered(store, first)
    of_day(store, "tuesday")
    _, second = train(store)
    registered(store, second, registration)
    erase(store, store.commit_of(first), ["request.json"], "no longer kept")
    assert asked(store).checkpoint == second


def test_a_policy_stands_on_the_rows_that_it_was_trained_on_against_the_champion(store: Store) -> None:
    made(store, "sft_checkpoint")
    of_day(store, "monday")
    _, first = train(store)
    registered(store, first)
    monday, tuesday = Upstream(store, "small")("preference_manifest"), of_day(store, "monday", "tuesday")
    _, second = train(store)
    assert stands_on(store, second, tuesday) and not stands_on(store, second, monday)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rounds": ROUNDS}, "generate.reference: champion and rounds: give one of them"),
        ({"optimise": [{}, {}]}, "generate.reference: champion and a chain in optimise"),
        ({"sweep": {"beta": [0.1, 0.2]}, "evals": {"ifeval": {"embedded": "micro"}}}, "champion and sweep"),
        ({"optimise": {"method": "simpo"}}, "generate.reference: champion, and method: simpo has no reference"),
    ],
)
def test_what_has_no_one_reference_is_refused_in_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(Exception, match=told) as raised:
        recipe(**AGAINST_CHAMPION, **changes)
    assert "\n" not in str(raised.value)


def test_a_recipe_without_a_gate_is_told_that_it_never_has_a_champion() -> None:
    (note,) = [note for note in recipe(**AGAINST_CHAMPION).notes() if "champion" in note]
    assert note.endswith("the reference stays the SFT checkpoint")
    gate = {"metrics": {"preferences/accuracy": {"at_least": 0.5}}, "any_improves": False}
    assert not any("champion" in note for note in recipe(**AGAINST_CHAMPION, gate=gate).notes())
