"""A withdrawn prompt takes along what was sampled from it: candidates, pairs, and rows of shards made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.data.rows import read_rows
from alignment.data.withdrawal import read_withdrawn
from alignment.recipe.generate import Score
from alignment.stages import execute
from alignment.stages.preference_shard import STAGE as SHARD
from alignment.stages.preference_shard import ShardRequest
from alignment.store import Artifact, Ref, Store
from alignment_dags.registry.rows import row_lineage
from alignment_dags.retention.text import withdrawn_text
from alignment_dags.retention.withdraw import find_rows, withdraw
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
