"""Real data and a real pretrained model through the whole graph, and every row by name at its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from alignment.recipe import load_recipe
from assets.building.upstream import Upstream
from resources.home import PROJECT

pytestmark = [pytest.mark.real_data, pytest.mark.soak]
SHARDS = ("harmless-base.test-00001-of-00002", "harmless-base.test-00002-of-00002")
LIMIT = 40


def column(path: Path, name: str) -> list[Any]:
    return list(pq.read_table(path, columns=[name])[name].to_pylist())


def test_stories260k_on_hh_pairs_runs_end_to_end_and_accounts_for_every_row(
    real_data: Path, monkeypatch: pytest.MonkeyPatch, bring_up_to_date: Callable[..., Upstream]
) -> None:
    monkeypatch.setenv("ALIGN_TEST_DATA", str(real_data))
    monkeypatch.delenv("NLTK_DATA", raising=False)
    recipe = load_recipe(PROJECT / "recipes" / "stories260k_hh.yaml")
    evals = recipe.evals
    assert evals.gsm8k and evals.ifeval and evals.mt_bench
    smaller = {
        name: suite.model_copy(update={"limit": LIMIT, "max_new_tokens": 32})
        for name, suite in evals.selected().items()
    }
    made = bring_up_to_date(recipe.model_copy(update={"evals": evals.model_copy(update=smaller)}))

    def folder(stage: str, shard: str | None = None) -> Path:
        return made.store.fetch(made(stage, shard))

    quarantined = [
        row
        for shard in SHARDS
        for row in column(folder("preference_shard", shard) / "quarantine.parquet", "source_row")
    ]
    training = pq.read_table(folder("policy_checkpoint") / "training_rows.parquet").to_pylist()
    by_split = {split: [row for row in training if row["split"] == split] for split in ("train", "held_out", "dropped")}
    assert len(training) == sum(map(len, by_split.values()))
    assert len(training) + len(quarantined) == 2312
    assert len({row["row_id"] for row in training}) == len(training)
    assert all(row["reason"] for row in by_split["dropped"])
    assert by_split["train"] and by_split["held_out"]

    summary = made.store.commit_of(made("policy_checkpoint")).summary
    assert summary["agreement"]["loss"] == pytest.approx(0.693147, abs=1e-3)
    report = made.store.commit_of(made("evaluation_report")).summary
    assert set(report["comparisons"]) == {"gsm8k", "ifeval", "preferences"}
    assert any("not judged" in note for note in report["notes"])
    answers = [
        json.loads(line)
        for line in (folder("policy_responses") / "mt_bench" / "responses.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    ]
    assert len(answers) == LIMIT
    assert all(len(answer["turns"]) == 2 or "> 512" in answer["failed"] for answer in answers)
    assert made.store.commit_of(made("registered_model")).summary["registered"] is False
