"""Nights whose reference is the champion: before there is one, after a promotion, and after a gate that said no."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from alignment.data.manifest import read_manifest
from alignment.logprobs.table import logprobs_folder
from alignment.recipe import Recipe, load_recipe
from alignment.stages import execute
from alignment.stages.stage import ManifestSummary, PolicySummary, ReferenceSummary
from alignment.training.held_out_pairs import prefers
from alignment_dags.nights.state import state_of
from alignment_dags.planner.forecast import Figure, forecast
from alignment_dags.registry.lineage import lineage_of
from alignment_dags.run.workspace import Workspace
from assets.building.upstream import Upstream
from assets.champion_reference import LOGPROBS, MANIFEST
from assets.reference_logprobs import scoring
from eval.gate.held_out import read_held_out
from eval.stages.new_rows import STAGE as NEW_ROWS
from eval.stages.new_rows import NewRowsRequest
from eval.summaries import NewRowsSummary
from resources.pools import load_pools
from tests.pipeline.test_rounds import RUBRIC

PASSES = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}, "any_improves": False}
FAILS = {"metrics": {"ifeval/prompt_level_strict_acc": {"at_least": 1.1}}, "any_improves": False}


@pytest.fixture
def recipe(small_recipe: dict[str, Any], tmp_path: Path) -> Callable[..., Recipe]:
    """The recipe with so many days of 16 pairs, and of prompts from the champion's answers to which pairs are made."""
    lines = Path(small_recipe["preferences"]["files"][0]).read_text(encoding="utf-8").splitlines(keepends=True)

    def write(days: int, gate: dict[str, Any] = PASSES) -> Recipe:
        for day in range(days):
            (tmp_path / f"day-{day}.jsonl").write_text("".join(lines[day * 16 : day * 16 + 16]), encoding="utf-8")
        prompts = [{"prompt": [{"role": "user", "content": f"Say {n}"}], "rubric": RUBRIC} for n in range(30)]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts), encoding="utf-8")
        sampled = {"n": 8, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 64, "score": {"kind": "rubric"}}
        sampled |= {"prompts": {"files": [str(tmp_path / "prompts.jsonl")]}, "reference": "champion"}
        changes = {"preferences": {"files": [str(tmp_path / "day-*.jsonl")]}, "generate": sampled, "gate": gate}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(small_recipe | changes), encoding="utf-8")
        return load_recipe(path)

    return write


def planned(recipe: Recipe, stage: str) -> Figure:
    found = {one.stage: one for one in forecast(Workspace(recipe, load_pools()))}
    return found[stage].slot_seconds


def test_the_champion_is_the_reference_of_new_rows_and_its_cache_survives_a_gate_that_says_no(
    recipe: Callable[..., Recipe], bring_up_to_date: Callable[..., Upstream]
) -> None:
    one_day = recipe(1)
    assert "there is no champion yet; no row is scored here" in planned(one_day, LOGPROBS).how
    upstream = bring_up_to_date(one_day)
    store = upstream.store
    first = store.commit_of(upstream("policy_checkpoint"))
    assert upstream.get(LOGPROBS) is None and upstream(MANIFEST) == upstream("preference_manifest")
    assert "reference" not in first.inputs and PolicySummary.of(first).first_loss == pytest.approx(0.693147, abs=1e-3)
    launched: list[Any] = bring_up_to_date.launched  # type: ignore[attr-defined]
    assert lineage_of("small")["version"] == "1"
    before = len(launched)
    bring_up_to_date(one_day)
    assert len(launched) == before, "it was promoted, and its rows keep their reference"
    assert state_of(Workspace(one_day, load_pools())).train == ()

    two_days = recipe(2)
    new = planned(two_days, "reference_logprobs")
    assert new.how.startswith("16 of 16 rows are not in the cache"), "under the SFT checkpoint new rows alone"
    generated = ReferenceSummary.of(store.commit_of(upstream("generated_logprobs"))).rows
    rows = 32 + (generated or 0)
    priced = planned(two_days, LOGPROBS)
    assert f"version 1: {rows} of {rows} rows are not in its cache; the next champion scores all {rows}" in priced.how
    assert priced.value is not None and new.value is not None and priced.value > new.value > 0

    upstream = bring_up_to_date(two_days)
    second = store.commit_of(upstream("policy_checkpoint"))
    assert (second.inputs["reference"], second.inputs["checkpoint"]) == (first.artifact, upstream("sft_checkpoint"))
    scored = ReferenceSummary.of(store.commit_of(upstream(LOGPROBS)))
    assert (scored.rows, scored.scored, scored.cache_hits) == (rows, 2 * rows, 0)
    pinned, plain = (ManifestSummary.of(store.commit_of(upstream(name))) for name in (MANIFEST, "preference_manifest"))
    assert (pinned.rows, pinned.train, pinned.held_out) == (plain.rows, plain.train, plain.held_out)
    assert pinned.fingerprint == scored.fingerprint != plain.fingerprint
    told = PolicySummary.of(second)
    assert told.agreement["worst_nats"] is not None and told.agreement["worst_nats"] < 1e-2, (
        "scored again, and the same"
    )
    from_store, from_mlflow = lineage_of("small"), lineage_of("small", "mlflow")
    assert from_store == from_mlflow and from_store["version"] == "2"
    inputs = from_store["tree"]["inputs"]["policy"]["inputs"]["manifest"]["inputs"]
    reference = inputs["references.day-0"]["inputs"]["checkpoint"]
    assert (reference["digest"], reference["lineage"], reference["inputs"]) == (first.digest, "its own", {})

    three_days = recipe(3, FAILS)
    with pytest.raises(Exception, match="the gate says fail"):
        bring_up_to_date(three_days)
    upstream = Workspace(three_days, load_pools()).upstream()
    third = store.commit_of(upstream("policy_checkpoint"))
    assert third.inputs["reference"] == second.artifact

    asked = {"checkpoint": second.artifact, "known": second.inputs["manifest"], "max_rows": 50, "quantise": None}
    new_rows = NewRowsRequest(manifest=upstream("preference_manifest"), **scoring(three_days) | asked)
    measured = NewRowsSummary.of(execute(NEW_ROWS, new_rows, store))
    start: dict[str, dict[str, Any]] = {}
    for shard in read_manifest(store.fetch(new_rows.manifest)).shards:
        assert shard.reference is not None
        scored_by_start = logprobs_folder(store.fetch(shard.reference), shard.shard.digest) / "logprobs.parquet"
        start |= {row["row_id"]: row for row in pq.read_table(scored_by_start).to_pylist()}
    pairs = read_held_out(store, second.artifact)
    assert pairs is not None and measured.measured == 16
    beside = [
        prefers(
            one.chosen_logp - start[one.row_id]["chosen_logp"], one.rejected_logp - start[one.row_id]["rejected_logp"]
        )
        for one in pairs.pairs
    ]
    assert measured.held_out_accuracy == pytest.approx(sum(beside) / len(beside)), "one reference for new and own pairs"

    lines = [{"prompt": f"New {n}", "chosen": f"It is {n}.", "rejected": "No."} for n in range(5)]
    folder = Path(str(three_days.file)).parent
    (folder / "day-9.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    total = rows + 16 + 5
    rest = planned(three_days, LOGPROBS)
    assert f"version 2: 5 of {total} rows are not in its cache" in rest.how
    with pytest.raises(Exception, match="the gate says fail"):
        bring_up_to_date(three_days)
    upstream = Workspace(three_days, load_pools()).upstream()
    kept = ReferenceSummary.of(store.commit_of(upstream(LOGPROBS)))
    assert store.commit_of(upstream("policy_checkpoint")).inputs["reference"] == second.artifact
    assert (kept.rows, kept.scored) == (total, 2 * 5), "the champion stays, and so does all that it has scored"
