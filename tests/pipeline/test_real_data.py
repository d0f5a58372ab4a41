"""Real data and a real pretrained model through the whole graph, and every row by name at its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

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


def test_kto_on_real_thumbs_runs_from_the_file_to_the_report(
    real_data: Path, tmp_path: Path, bring_up_to_date: Callable[..., Upstream]
) -> None:
    """300 published rows; those whose prompt fills the model's 512 tokens are dropped by name."""
    hh = yaml.safe_load((PROJECT / "recipes" / "stories260k_hh.yaml").read_text(encoding="utf-8"))
    model = {"path": str(real_data / "stories260k"), "chat_template": hh["base_model"]["chat_template"]}
    path = tmp_path / "kto.yaml"
    recipe = {
        "name": "kto_demo",
        "base_model": model,
        "sft": {"adopt": model},
        "preferences": {"files": [str(real_data / "demo" / "kto_en_demo.json")]},
        "held_out_fraction": 0.2,
        "tokens": {"max_length": 512, "truncation": "keep_start"},
        "reference": {"precision": "float32"},
        "dpo": {"loss": "kto", "learning_rate": 1e-4, "batch_size": 16, "precision": "float32"},
        "evals": {
            "precision": "float32",
            "ifeval": {"data": str(real_data / "ifeval" / "input_data.jsonl"), "max_new_tokens": 16, "limit": 4},
        },
        "gate": "none",
    }
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    made = bring_up_to_date(load_recipe(path))
    manifest = made.store.commit_of(made("preference_manifest")).summary
    assert manifest["rows"] == 300 == manifest["train"] + manifest["held_out"] + sum(manifest["reasons"].values())
    policy = made.store.commit_of(made("policy_checkpoint")).summary
    assert policy["first_loss"] == pytest.approx(0.5, abs=1e-5) and policy["agreement"]["worst_nats"] < 1e-3
    assert policy["held_out"]["rows"] == manifest["held_out"] > 20
    report = made("evaluation_report")
    compared = made.store.commit_of(report).summary["comparisons"]
    assert set(compared["preferences"]) == {"accuracy", "margin"}
    page = made.store.read(report, "report.html").decode()
    assert "completions with a thumb up or down" in page and "held-out completions:" in page
