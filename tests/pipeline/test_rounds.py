"""Two rounds: the second samples from the policy of the first, which is its reference too, and is compared with it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.data.rows import is_held_out, read_rows
from alignment.progress import CURVES
from alignment.recipe import Recipe, load_recipe
from alignment.stages.candidates import CandidatesSummary, parts_of, read_candidates
from alignment.stages.stage import PolicySummary
from alignment_dags.nights.state import state_of
from alignment_dags.planner.forecast import forecast
from alignment_dags.run.workspace import Workspace
from assets.building.upstream import Upstream
from eval.stages.ranked_pairs import RankedSummary
from eval.summaries import RoundSummary
from resources.pools import load_pools
from resources.store import ArtifactStore
from tests.pipeline.test_interruptions import Run

RUBRIC = [
    {"kind": "max_words", "value": 2},
    {"kind": "regex", "value": "[a-m]"},
    {"kind": "regex", "value": "^.{1,9}$"},
]


def written(small_recipe: dict[str, Any], tmp_path: Path, count: int) -> Path:
    """A recipe's file. The tiny model answers nonsense, and ends about one answer in five; short ones are preferred."""
    prompts = tmp_path / "prompts.jsonl"
    records = [{"prompt": [{"role": "user", "content": f"Say {n}"}], "rubric": RUBRIC} for n in range(count)]
    prompts.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    sampled = {"prompts": {"files": [str(prompts)]}, "n": 8, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 64}
    rounds = sampled | {"count": 2, "score": {"kind": "rubric"}, "beta": [0.1, 0.3]}
    path = tmp_path / "recipe.yaml"
    evals = {"precision": "float32", "batch_tokens": 65536}
    path.write_text(yaml.safe_dump(small_recipe | {"rounds": rounds, "evals": evals}), encoding="utf-8")
    return path


@pytest.fixture
def recipe(small_recipe: dict[str, Any], tmp_path: Path) -> Recipe:
    return load_recipe(written(small_recipe, tmp_path, 60))


def test_a_round_samples_from_the_policy_before_it_which_is_its_reference(
    recipe: Recipe, bring_up_to_date: Callable[..., Upstream]
) -> None:
    upstream = bring_up_to_date(recipe)
    store = upstream.store
    first, second = (store.commit_of(upstream(f"round_{number}/policy_checkpoint")) for number in (1, 2))
    assert second.inputs["checkpoint"] == first.artifact and second.digest != first.digest
    assert PolicySummary.of(second).first_loss == pytest.approx(0.693147, abs=1e-3), "the policy is its reference"
    sampled = store.commit_of(upstream("round_2/candidates"))
    assert sampled.inputs["checkpoint"] == first.artifact
    references = store.commit_of(upstream("round_2/generated_logprobs"))
    assert references.inputs["checkpoint"] == first.artifact

    ranked = RankedSummary.of(store.commit_of(upstream("round_2/ranked_pairs")))
    rows = read_rows(store.fetch(upstream("round_2/generated_shard")) / "rows.parquet")
    assert len(rows) == ranked.pairs > 4 and ranked.left_out["cut at max_new_tokens"] > 50
    origins = {(row.generator, row.judge, row.round) for row in rows}
    assert origins == {(f"policy of round 1 {first.digest[:12]}", "rubric", 2)}
    assert not any(is_held_out(row.prompt, row.form, recipe.held_out_fraction) for row in rows)

    compared = RoundSummary.of(store.commit_of(upstream("round_2/comparison")))
    held_out = {
        row["row_id"]
        for part in parts_of(store, upstream("round_2/answers"))
        for row in read_candidates(store.fetch(part))
    }
    assert (
        compared.prompts == len(held_out) == CandidatesSummary.of(store.commit_of(upstream("round_1/answers"))).prompts
    )
    best = second if compared.improved else first
    assert upstream("policy_checkpoint") == best.artifact, "the best round's policy is the recipe's"

    launched = len(bring_up_to_date.launched)  # type: ignore[attr-defined]
    bring_up_to_date(recipe)
    assert len(bring_up_to_date.launched) == launched, "nothing is left to do"  # type: ignore[attr-defined]
    workspace = Workspace(recipe, load_pools())
    state = state_of(workspace)
    assert not state.manifest_behind and not state.train
    assert {stage.stage for stage in forecast(workspace)} >= {"round_2/candidates", "round_2/comparison"}


@pytest.mark.soak
def test_rounds_that_are_killed_while_they_sample_and_while_they_train_end_at_the_same_pairs_and_policy(
    small_recipe: dict[str, Any],
    tmp_path: Path,
    bring_up_to_date: Callable[..., Upstream],
    monkeypatch: pytest.MonkeyPatch,
    align_command: list[str],
) -> None:
    path = written(small_recipe, tmp_path, 200)
    undisturbed = bring_up_to_date(load_recipe(path))
    for place in ("ALIGN_HOME", "DAGSTER_HOME", "ALIGN_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(place, raising=False)
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "killed" / "align"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "killed" / "dagster"))
    store = ArtifactStore().open()

    def wait_for_work(run: Run, kind: str, name: str) -> None:
        """Returns once a work folder has such a file: of lines that move, a log gets few."""
        while not list(Path(store.path("work", kind)).glob(f"*/{name}")):
            assert run.process.poll() is None, "".join(run.lines)
            time.sleep(0.02)

    sampling = Run(align_command, path)
    wait_for_work(sampling, "candidates", "part-*.jsonl")
    os.killpg(sampling.process.pid, signal.SIGKILL)
    sampling.end()

    training = Run(align_command, path)
    training.wait_for(r"round_2/policy_checkpoint …")
    wait_for_work(training, "policy_checkpoint", str(CURVES))
    os.killpg(training.process.pid, signal.SIGKILL)
    training.end()

    last = Run(align_command, path)
    assert last.end() == 0, "".join(last.lines)
    killed = Upstream(store, "small")
    for name in ("candidates", "ranked_pairs", "generated_shard", "comparison"):
        assert killed(f"round_2/{name}").digest == undisturbed(f"round_2/{name}").digest
    assert killed("policy_checkpoint").digest == undisturbed("policy_checkpoint").digest
