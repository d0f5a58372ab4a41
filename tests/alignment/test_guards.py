"""Every guard of data and training with an input that trips it, the sentence it then says, and one that does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.data.rows import paired_row, write_rows
from alignment.data.statistics import IN_SUMMARY
from alignment.guards import (
    Guard,
    Guards,
    agreement,
    dropped,
    left_out,
    manifest_guards,
    of_data,
    policy_guards,
    quarantined,
    reference_unchanged,
    setup_notes,
    stopped,
    training_signs,
)
from alignment.recipe import Dpo, SftTraining, TokenPolicy, parse_recipe
from alignment.stages import Context, Request, Result, Stage, execute
from alignment.stages.preference_manifest import STAGE as MANIFEST
from alignment.stages.preference_manifest import ManifestRequest
from alignment.stages.stage import ManifestSummary, PolicySummary, ShardSummary
from alignment.store import Artifact, Store
from alignment.store.erase import erase


def shard(rows: int, lost: int, **reasons: int) -> ShardSummary:
    return ShardSummary(rows=rows, quarantined=lost, reasons=reasons, kind="paired")


def test_rows_that_are_not_valid_are_counted_over_all_shards() -> None:
    whole = quarantined([shard(90, 2), shard(100, 3)])
    assert whole.passed and whole.sentence == "5 of 195 rows are quarantined (2.6 %)"
    lost = quarantined([shard(90, 10, same=10), shard(95, 5, same=2, empty=3)])
    assert not lost.passed
    assert lost.sentence == "15 of 200 rows are quarantined (7.5 %), most of them for: same (12)"
    assert lost.numbers == {"quarantined": 15, "rows": 200}


def test_rows_that_the_token_policy_drops_are_counted_with_the_commonest_reason() -> None:
    assert dropped(ManifestSummary(rows=100, dropped=5)).passed
    lost = dropped(ManifestSummary(rows=100, dropped=6, reasons={"too long": 4, "no token": 2}))
    assert not lost.passed
    assert lost.sentence == "6 of 100 rows are dropped (6.0 %), most of them for: too long (4)"


def test_a_shard_that_is_left_out_is_named_unless_a_person_withdrew_it() -> None:
    assert left_out(ManifestSummary(left_out={"a": "withdrawn"})).sentence == "every shard takes part"
    lost = left_out(ManifestSummary(left_out={"a": "withdrawn", "b": "not built"}))
    assert not lost.passed and lost.sentence == "1 shard is left out (b: not built)"


def test_what_the_datas_statistics_say_are_guards_of_the_manifest_by_name(store: Store) -> None:
    manifest = store.commit_of(pinned(store, texts(20)))
    named = {guard.name: guard for guard in manifest_guards().findings(store, manifest)}
    assert list(named) == ["rows_quarantined", "rows_dropped", "shards_left_out", *IN_SUMMARY]
    said = {finding.name: finding for finding in ManifestSummary.of(manifest).findings()}
    assert {"length_bias", "contradictions"} <= said.keys()
    assert all(named[name] == of_data(finding) for name, finding in said.items())
    assert named["score_order"].sentence == "not measured here"
    assert named["rows_quarantined"].sentence == "0 of 20 rows are quarantined (0.0 %)"


def test_named_sources_whose_shards_an_earlier_version_made_are_measured_for_their_guards(store: Store) -> None:
    def rows(name: str, longer: int) -> list[Any]:
        return [paired_row(f"{name} {n}", "yes yes" if n < longer else "y", "no no", "f", n + 1) for n in range(50)]

    shards = {
        f"{name}-a": made(
            store,
            "preference_shard",
            {"rows": 50, "kind": "paired", "source_rows": longer},
            lambda out, name=name, longer=longer: write_rows(out / "rows.parquet", rows(name, longer)),
        )
        for name, longer in (("long", 49), ("concise", 1))
    }
    manifest = store.commit_of(execute(MANIFEST, ManifestRequest(shards=shards, held_out_fraction=0.0), store).artifact)

    def length_bias(*sources: str) -> Guard:
        return {guard.name: guard for guard in manifest_guards(sources).findings(store, manifest)}["length_bias"]

    assert length_bias().passed and length_bias("long").numbers["long/chosen_longer"] == 0.98
    red = length_bias("long", "concise")
    assert not red.passed
    assert {name: red.numbers[name] for name in ("chosen_longer", "long/chosen_longer", "concise/chosen_longer")} == {
        "chosen_longer": 0.5,
        "long/chosen_longer": 0.98,
        "concise/chosen_longer": 0.02,
    }
    erase(store, store.commit_of(shards["long-a"]), ["rows.parquet"], "asked for")
    assert length_bias("long", "concise") == length_bias(), "what is gone cannot be measured, and stops nothing"


def test_agreement_says_how_far_the_start_was_from_its_reference() -> None:
    found = agreement(PolicySummary(agreement={"worst_nats": 0.004, "mean_nats": 1e-4}))
    assert found.passed and "at most 0.004 nats a sequence, +0.0001 on average" in found.sentence
    assert agreement(PolicySummary()).sentence.startswith("not compared in this attempt")


def test_a_training_that_a_condition_ended_is_red_and_says_which() -> None:
    why = "stopped at step 20 of 100: the median reward margin of held-out pairs is 6, above 5"
    assert stopped(PolicySummary(steps=20, stopped_by=why)) == Guard("training_stopped", False, why)
    assert stopped(PolicySummary(steps=100)).sentence == "trained all of its 100 steps"


def test_only_a_bad_sign_of_training_is_red() -> None:
    usual = training_signs(PolicySummary(held_out={"accuracy": 0.97}), Dpo())
    assert usual.passed and usual.sentence == (
        "none of the known signs of trouble; worth knowing: held-out accuracy is 97.0 %, above 80 %: the pairs are"
        " easily told apart"
    )
    bad = training_signs(PolicySummary(held_out={"accuracy": 0.5}), Dpo())
    assert not bad.passed and bad.sentence.startswith("held-out accuracy is 50.0 %: the preferences were not learned")
    assert (
        training_signs(PolicySummary(held_out={"accuracy": 0.7}), Dpo()).sentence
        == "none of the known signs of trouble"
    )


class Made(Request):
    name: str


def made(store: Store, kind: str, summary: dict[str, Any], fill: Any = None, **inputs: Artifact) -> Artifact:
    def run(request: Made, context: Context) -> Result:
        if fill is not None:
            fill(context.out)
        return Result(request.name, summary)

    name = f"{kind} {sorted(summary.items())} {fill}"
    return execute(Stage(kind, 1, Made, run), Made(name=name), store).artifact


def pinned(store: Store, rows: list[Any]) -> Artifact:
    part = made(
        store,
        "preference_shard",
        {"rows": len(rows), "kind": "paired"},
        lambda out: write_rows(out / "rows.parquet", rows),
    )
    return execute(MANIFEST, ManifestRequest(shards={"one": part}, held_out_fraction=0.0), store).artifact


def texts(count: int) -> list[Any]:
    return [paired_row(f"p{n}", "yes", "no", "f", n + 1) for n in range(count)]


def chats(count: int) -> list[Any]:
    def message(role: str, text: str) -> tuple[dict[str, str], ...]:
        return ({"role": role, "content": text},)

    sides = [message("assistant", text) for text in ("yes", "no")]
    return [paired_row(message("user", f"p{n}"), *sides, "f", n + 1) for n in range(count)]


@pytest.mark.parametrize(
    ("rows", "start", "settings", "tokens", "told"),
    [
        (chats(5), {"has_chat_template": True}, {}, {}, None),
        (texts(5), {"has_chat_template": False}, {}, {}, None),
        (texts(5), {"has_chat_template": True}, {}, {"plain_text": "chat"}, None),
        (texts(5), {"has_chat_template": True}, {}, {}, "1 shard holds plain text (first: one) and the model has a"),
        (
            texts(5),
            {"has_chat_template": False, "adopted": True},
            {},
            {},
            "the start checkpoint was adopted and has no",
        ),
        (chats(5), {"has_chat_template": True, "adopted": True}, {}, {}, None),
        (chats(5), {"has_chat_template": True, "template_ends_answers": True}, {}, {}, None),
        (
            chats(5),
            {"has_chat_template": True, "template_ends_answers": False},
            {},
            {},
            "the chat template puts none of the checkpoint's ends behind an answer",
        ),
        (chats(5), {"has_chat_template": True}, {"epochs": 4}, {}, "5 rows are trained on for 4 epochs"),
    ],
)
def test_what_wastes_a_training_is_named_before_it_begins(
    store: Store, rows: list[Any], start: dict[str, Any], settings: Any, tokens: Any, told: str | None
) -> None:
    checkpoint = made(store, "sft_checkpoint", start)
    notes = setup_notes(store, pinned(store, rows), checkpoint, Dpo(**settings), TokenPolicy(**tokens))
    assert [note.startswith(str(told)) for note in notes] == ([] if told is None else [True])


@pytest.mark.parametrize(
    ("sft", "policy", "told"),
    [
        ({"learning_rate": 2e-5}, {"learning_rate": 5e-7}, None),
        ({"learning_rate": 2e-5}, {"learning_rate": 9e-6}, None),
        ({"learning_rate": 2e-5}, {"learning_rate": 1e-5}, "learning_rate 1e-5 is 0.5 times SFT's 2e-5, and practice"),
        ({"learning_rate": 2e-5}, {"learning_rate": 5e-6, "lora": {}}, None),
        ({"learning_rate": 2e-4, "lora": {}}, {"learning_rate": 5e-6}, None),
        (
            {"learning_rate": 2e-4, "lora": {}},
            {"learning_rate": 2e-4, "lora": {}},
            "learning_rate 0.0002 is 1 times SFT's 0.0002 (an adapter's is a tenth of it), and practice",
        ),
    ],
)
def test_preference_training_as_fast_as_sft_is_named_by_recipe_and_guard(
    store: Store, sft: dict[str, Any], policy: dict[str, Any], told: str | None
) -> None:
    asked = {"dataset": {"kind": "sft_dataset"}, "settings": SftTraining(**sft).model_dump(mode="json")}

    def fill(out: Path) -> None:
        (out / "request.json").write_text(json.dumps(asked), encoding="utf-8")

    start = made(store, "sft_checkpoint", {"has_chat_template": True, "told": str(sft)}, fill)
    notes = setup_notes(store, pinned(store, chats(5)), start, Dpo(**policy), TokenPolicy())
    recipe = parse_recipe(
        {
            "name": "r",
            "base_model": {"embedded": "micro"},
            "sft": {"dataset": {"embedded": "micro"}, **sft},
            "preferences": {"embedded": "micro"},
            "optimise": policy,
        },
        "-",
        {},
    )
    said = [note.removeprefix("optimise.") for note in recipe.notes() if "times SFT's" in note]
    assert notes == said and [note.startswith(str(told)) for note in notes] == ([] if told is None else [True])


@pytest.mark.parametrize(
    ("loss", "remedy"),
    [
        ("sigmoid", "fewer epochs, a lower learning rate or a larger beta"),
        ("kto", "fewer epochs, a lower learning rate or a larger beta"),
        ("orpo", "fewer epochs or a lower learning rate"),
        ("simpo", "fewer epochs or a lower learning rate"),
    ],
)
def test_a_remedy_names_only_what_the_method_takes(store: Store, loss: str, remedy: str) -> None:
    start = made(store, "base_model" if loss == "orpo" else "sft_checkpoint", {"has_chat_template": True})
    (note,) = setup_notes(store, pinned(store, chats(5)), start, Dpo(loss=loss, epochs=4), TokenPolicy())
    assert note.endswith(f"learnt by heart; {remedy}")


def test_a_reference_whose_files_changed_while_the_policy_was_trained_is_red(store: Store) -> None:
    start = made(store, "sft_checkpoint", {}, lambda out: (out / "model.safetensors").write_text("weights"))

    class Trained(Request):
        checkpoint: Artifact

    policy = execute(
        Stage("policy_checkpoint", 1, Trained, lambda request, context: Result("p")), Trained(checkpoint=start), store
    )
    assert reference_unchanged(store, policy, deep=True).passed
    Path(store.path(start.kind, start.key, start.attempt, "model.safetensors")).write_text("changed")
    assert reference_unchanged(store, policy, deep=False).sentence == "not compared here"
    red = reference_unchanged(store, policy, deep=True)
    assert (red.passed, red.severity) == (False, "error")
    assert red.sentence.startswith("the reference changed since it was scored: ")


def test_a_method_without_a_reference_has_no_guard_of_one() -> None:
    assert "agreement_at_start" in policy_guards(Dpo(), TokenPolicy()).about
    assert (
        not {"agreement_at_start", "reference_unchanged"} & policy_guards(Dpo(loss="simpo"), TokenPolicy()).about.keys()
    )


def test_guards_give_one_finding_a_name_in_their_order(store: Store) -> None:
    commit = store.commit_of(made(store, "any", {}))
    guards = Guards({"b": "", "a": ""}, lambda store, commit, deep: [Guard("a", False, "red")])
    assert guards.findings(store, commit) == [Guard("b", True, "not measured here"), Guard("a", False, "red")]
