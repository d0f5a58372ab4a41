"""A withdrawn prompt takes along what was sampled from it: candidates, pairs, and rows of shards made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.data.files import pin_file
from alignment.data.rows import read_rows, read_sft_rows
from alignment.data.withdrawal import Withdrawn, read_withdrawn, tombstone
from alignment.recipe.generate import Score
from alignment.stages import execute
from alignment.stages.preference_shard import STAGE as SHARD
from alignment.stages.preference_shard import ShardRequest
from alignment.stages.sft_dataset import STAGE as SFT
from alignment.stages.sft_dataset import SftDatasetRequest
from alignment.store import Artifact, Ref, Store
from alignment_dags.registry.rows import row_lineage
from alignment_dags.retention.text import withdrawn_text
from alignment_dags.retention.withdraw import find_rows, restore, show_restored, withdraw
from eval.stages.ranked_pairs import STAGE as RANKED
from eval.stages.ranked_pairs import RankedRequest
from resources.store import ArtifactStore
from tests.sampled import SAMPLE, SampledRequest, prompt_id

RECIPE = """
name: made
base_model: {embedded: micro}
sft: {adopt: {embedded: micro}}
preferences: {embedded: micro}
"""
NODES = ("round_2/candidates", "round_2/ranked_pairs", "round_2/generated_shard")


def made(store: Store, answers: dict[str, list[str]]) -> tuple[Artifact, Artifact, Artifact]:
    """Candidates, pairs and a shard of them, as the recipe's current ones."""
    candidates = execute(SAMPLE, SampledRequest(answers=answers), store).artifact
    ranked = execute(RANKED, RankedRequest(candidates=(candidates,), scores=(Score(kind="rubric"),), round=2), store)
    shard = execute(SHARD, ShardRequest(generated=ranked.artifact), store)
    artifacts = (candidates, ranked.artifact, shard.artifact)
    for name, artifact in zip(NODES, artifacts, strict=True):
        store.write_ref(Ref(artifact=artifact), "made", name)
    return artifacts


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "made.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_a_prompt_goes_with_all_that_was_sampled_from_it(recipe: Path) -> None:
    store = ArtifactStore().open()
    answers = {"one": ["good", "bad"], "two": ["fine", "worse"]}
    before = made(store, answers)
    rows = {row.prompt[0]["content"]: row.row_id for row in read_rows(store.fetch(before[2]) / "rows.parquet")}
    result = withdraw(recipe, [prompt_id("one")], [], "asked")
    assert result["generated"] == {prompt_id("one"): [rows["one"]]}
    assert read_withdrawn(store, "made").rows == {prompt_id("one"), rows["one"]}
    erased, kept = withdrawn_text(store, ["made"], set())
    assert not erased and {item.kind for item in kept} == {"candidates", "ranked_pairs", "preference_shard"}
    made(store, {"two": answers["two"]})
    erased, kept = withdrawn_text(store, ["made"], set())
    assert not kept and {item.key for item in erased} == {artifact.key for artifact in before}
    assert all(set(item.files) <= set(item.commit.files) for item in erased)


def test_a_prompt_is_found_by_its_text_and_by_that_of_its_answers(recipe: Path) -> None:
    store = ArtifactStore().open()
    made(store, {"one red fox": ["good", "bad"], "two": ["fine owl", "worse"]})
    for text, prompt in (("red fox", "one red fox"), ("fine owl", "two")):
        (row,) = find_rows(recipe, text)["rows"]
        assert (row["row_id"], row["shard"]) == (prompt_id(prompt), "(sampled answers)")


def test_a_pair_goes_with_its_prompt(recipe: Path) -> None:
    store = ArtifactStore().open()
    shard = made(store, {"one": ["good", "bad"], "two": ["fine", "worse"]})[2]
    row = read_rows(store.fetch(shard) / "rows.parquet")[0]
    withdraw(recipe, [row.row_id], [], "")
    assert read_withdrawn(store, "made").rows == {row.row_id, prompt_id(row.prompt[0]["content"])}


def test_a_row_says_which_model_wrote_it_who_scored_it_and_when(recipe: Path) -> None:
    store = ArtifactStore().open()
    shard = made(store, {"one": ["good", "bad"]})[2]
    (row,) = read_rows(store.fetch(shard) / "rows.parquet")
    told = row_lineage(row.row_id)["origin"]
    assert told == {"generator": "policy 0123", "judge": "rubric", "round": 2, "prompt": prompt_id("one")}
    assert row_lineage("f" * 32)["origin"] is None


def pairs_of(store: Store, shard: Artifact) -> dict[str, str]:
    """Id of a shard's row by the text of its prompt."""
    rows = read_rows(store.fetch(shard) / "rows.parquet")
    return {str(row.prompt[0]["content"]): row.row_id for row in rows}  # type: ignore[index]


def test_what_went_with_a_row_is_restored_with_it_and_named(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ArtifactStore().open()
    pairs = pairs_of(store, made(store, {"one": ["good", "bad"], "two": ["fine", "worse"]})[2])
    withdraw(recipe, [pairs["one"]], [], "asked")
    stone = tombstone(store, "made", "rows", prompt_id("one"))
    assert stone is not None and (stone.because, stone.reason) == ([pairs["one"]], "asked")
    told = restore(recipe, [pairs["one"]], [])
    assert (told["along"], told["staying"]) == ([prompt_id("one")], [])
    assert read_withdrawn(store, "made").rows == frozenset()
    show_restored(told)
    assert f"and what was sampled from their prompts: {prompt_id('one')}\n" in capsys.readouterr().out


@pytest.mark.parametrize("own_first", [True, False])
def test_what_was_withdrawn_by_itself_too_stays_and_is_named(
    recipe: Path, capsys: pytest.CaptureFixture[str], own_first: bool
) -> None:
    store = ArtifactStore().open()
    pair = pairs_of(store, made(store, {"one": ["good", "bad"]})[2])["one"]
    asked = [prompt_id("one"), pair] if own_first else [pair, prompt_id("one")]
    for one in asked:
        withdraw(recipe, [one], [], "")
    told = restore(recipe, [pair], [])
    assert (told["along"], told["staying"]) == ([], [prompt_id("one")])
    show_restored(told)
    assert f"still withdrawn, of what was sampled from their prompts: {prompt_id('one')}" in capsys.readouterr().out
    assert restore(recipe, [prompt_id("one")], [])["staying"] == []
    assert read_withdrawn(store, "made").rows == frozenset()


def test_what_went_with_two_shards_stays_until_both_are_restored(recipe: Path, tmp_path: Path) -> None:
    store = ArtifactStore().open()
    pair = pairs_of(store, made(store, {"one": ["good", "bad"]})[2])["one"]
    for day in ("monday", "friday"):
        day_of(store, tmp_path, day, "one")
    withdraw(recipe, [], ["monday"], "")
    withdraw(recipe, [], ["friday"], "")
    told = restore(recipe, [], ["monday"])
    assert (told["along"], told["staying"]) == ([], sorted([pair, prompt_id("one")]))
    assert restore(recipe, [], ["friday"])["along"] == sorted([pair, prompt_id("one")])
    assert read_withdrawn(store, "made") == Withdrawn()


def test_what_an_earlier_version_withdrew_with_a_row_stays_and_is_named(recipe: Path) -> None:
    store = ArtifactStore().open()
    pair = pairs_of(store, made(store, {"one": ["good", "bad"]})[2])["one"]
    for id in (pair, prompt_id("one")):
        text = json.dumps({"id": id, "at": "2026-01-01", "reason": "", "artifacts": [], "sources": []})
        store.replace(store.path("withdrawn", "made", "rows", f"{id}.json"), text.encode())
    told = restore(recipe, [pair], [])
    assert (told["along"], told["staying"]) == ([], [prompt_id("one")])


def day_of(store: Store, tmp_path: Path, day: str, *prompts: str) -> Artifact:
    """A shard of a file with these prompts, as a current one of the recipe."""
    path = tmp_path / f"{day}.jsonl"
    said = [[{"role": "user", "content": prompt}] for prompt in prompts]
    sides = {side: [{"role": "assistant", "content": f"{side} on {day}"}] for side in ("chosen", "rejected")}
    path.write_text("".join(json.dumps({"prompt": one, **sides}) + "\n" for one in said), encoding="utf-8")
    shard = execute(SHARD, ShardRequest(file=pin_file(str(path))), store).artifact
    store.write_ref(Ref(artifact=shard), "made", "preference_shard", day)
    return shard


def test_a_shard_takes_along_what_was_sampled_from_its_prompts(recipe: Path, tmp_path: Path) -> None:
    store = ArtifactStore().open()
    candidates, ranked, shard = made(store, {"one": ["good", "bad"], "two": ["fine", "worse"]})
    pairs = pairs_of(store, shard)
    day = day_of(store, tmp_path, "monday", "one", "never sampled to")
    told = withdraw(recipe, [], ["monday"], "")
    assert told["generated"] == {prompt_id("one"): [pairs["one"]]}
    assert read_withdrawn(store, "made").rows == {prompt_id("one"), pairs["one"]}
    made(store, {"two": ["fine", "worse"]})
    erased, _ = withdrawn_text(store, ["made"], set())
    assert {item.key for item in erased} == {artifact.key for artifact in (candidates, ranked, shard, day)}


def test_a_row_to_fine_tune_on_takes_along_what_was_sampled_from_its_prompt(recipe: Path, tmp_path: Path) -> None:
    store = ArtifactStore().open()
    pairs = pairs_of(store, made(store, {"one": ["good", "bad"], "two": ["fine", "worse"]})[2])
    path = tmp_path / "chats.jsonl"
    chats = [[{"role": "user", "content": p}, {"role": "assistant", "content": "Yes."}] for p in ("one", "three")]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    dataset = execute(
        SFT, SftDatasetRequest(files=[pin_file(str(path))], seed=1, held_out_fraction=0.0), store
    ).artifact
    store.write_ref(Ref(artifact=dataset), "made", "sft_dataset")
    row = next(row for row in read_sft_rows(store.fetch(dataset) / "train.parquet") if "one" in str(row.prompt))
    told = withdraw(recipe, [row.row_id], [], "")
    assert (told["rows"], told["generated"]) == ({row.row_id: ["(SFT data)"]}, {prompt_id("one"): [pairs["one"]]})
    assert read_withdrawn(store, "made").rows == {prompt_id("one"), pairs["one"]}
    assert restore(recipe, [row.row_id], [])["along"] == sorted([prompt_id("one"), pairs["one"]])
    assert read_withdrawn(store, "made") == Withdrawn()
