"""Which rows, which reference, which code made this model, and which models saw this row: from the store alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from alignment.errors import BadInput
from alignment.recipe import Recipe, load_recipe, parse_recipe
from alignment_dags.cli.models import lines
from alignment_dags.registry.export import export
from alignment_dags.registry.lineage import lineage_of
from alignment_dags.registry.rows import row_lineage, show_row
from alignment_dags.retention.collect import carry_out, plan_of
from alignment_dags.retention.withdraw import withdraw
from assets.building.upstream import Upstream
from resources.store import ArtifactStore

PASSES = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}}


@pytest.fixture
def recipe(small_recipe: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    def recipe(beta: float = 0.1, **changed: Any) -> Path:
        data = small_recipe | {"dpo": small_recipe["dpo"] | {"beta": beta}, "gate": PASSES} | changed
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return path

    return recipe


def test_code_of_the_model_that_the_recipe_let_run_is_named(
    recipe: Callable[..., Path],
    small_recipe: dict[str, Any],
    tmp_path: Path,
    bring_up_to_date: Callable[..., Upstream],
    code_of_models: None,
) -> None:
    folder = Path(shutil.copytree(small_recipe["base_model"]["path"], tmp_path / "model"))
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\nclass OwnConfig(LlamaConfig):\n"
        '    model_type = "own"\n\nclass OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n'
    )
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": classes}))
    source = {"path": str(folder), "run_code_of_model": True}
    made = bring_up_to_date(load_recipe(recipe(base_model=source, sft={"adopt": source, "precision": "float32"})))
    policy = made.store.commit_of(made("policy_checkpoint"))
    record = lineage_of("small")
    digest = hashlib.sha256((folder / "own.py").read_bytes()).hexdigest()
    assert record["code_of_model"] == policy.summary["runs_code"] == {"own.py": digest}
    assert any(line.strip().startswith("CODE OF THE MODEL RAN") and "own.py" in line for line in lines(record))
    assert "own.py" in export("small", tmp_path / "exported", print)["files"], "a model is no model without its code"


def test_the_record_names_every_part_and_holds_without_mlflow_and_dagster(
    recipe: Callable[..., Path],
    home: Path,
    finished: Callable[..., Upstream],
    bring_up_to_date: Callable[..., Upstream],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = recipe()
    made = finished(load_recipe(path))
    for name in ("policy_checkpoint", "preference_manifest", "sft_checkpoint"):
        made(name)
    record = lineage_of("small")

    manifest = made.store.commit_of(made("preference_manifest"))
    assert record["manifest"]["digest"] == manifest.digest
    assert record["manifest"]["rows"] == sum(shard["rows"] for shard in record["shards"]) == 48
    assert record["reference"]["fingerprint"] == manifest.summary["fingerprint"]
    assert record["sft"]["digest"] == made("sft_checkpoint").digest
    assert record["sft"]["adopted_from"]["files"] > 0
    again = parse_recipe(yaml.safe_load(record["recipe"]), "recorded", {})
    assert again == load_recipe(path)
    assert record["gate"]["verdict"] == "pass"
    assert (
        record["code"]["versions"]["policy_checkpoint"] == made.store.commit_of(made("policy_checkpoint")).code_version
    )
    assert record["packages"]["torch"]
    assert record["device"]
    assert all(run["dagster_run"] and run["mlflow_run"] for run in record["runs"])
    assert record["registration"]["promoted_by"] == "gate"
    assert record["code_of_model"] is None

    bring_up_to_date(load_recipe(recipe(0.9)))
    old = lineage_of("small@1")
    assert {name: old[name] for name in old if name != "erased"} == {
        name: record[name] for name in old if name != "erased"
    }

    shutil.rmtree(home / "dagster")
    for tracking, alias in ((f"sqlite:///{home / 'empty.db'}", "is gone"), ("http://127.0.0.1:9", "")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
        left = lineage_of("small@1")
        assert [run["dagster_run"] for run in left["runs"]] == [run["dagster_run"] for run in record["runs"]]
        assert all(run["mlflow_run"] is None for run in left["runs"])
        parts = set(record) - {"runs", "alias_moved"}
        assert {name: left[name] for name in parts} == {name: record[name] for name in parts}
        assert alias in (left["alias_moved"] or "")


def test_the_page_is_readable_and_says_everything_once(
    recipe: Callable[..., Path], bring_up_to_date: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_TEAM", "s3cret")
    bring_up_to_date(load_recipe(recipe(description="${OF_THE_TEAM}")))
    record = lineage_of("small")
    assert "\n  name: small" not in "\n".join(lines(record)), "the recipe is shown when somebody asks for it"
    page = "\n".join(lines(record, verbose=True))
    for told in (
        "small version 1",
        "passed by the gate",
        "gate: pass",
        "48 rows:",
        f"reference: {record['reference']['fingerprint'][:12]}",
        "adopted model: ",
        "shards: 2",
        "references: 2",
        "\n  name: small",
        "\n  description: ${OF_THE_TEAM}",
        record["code"]["git"],
        record["packages"]["transformers"],
    ):
        assert page.count(told) == 1, told
    assert "s3cret" not in page
    json.dumps(record, allow_nan=False)


def test_a_row_names_every_model_that_saw_it(
    recipe: Callable[..., Path],
    finished: Callable[..., Upstream],
    bring_up_to_date: Callable[..., Upstream],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = recipe()
    made = finished(load_recipe(path))
    split = pq.read_table(made.store.fetch(made("preference_manifest")) / "split.parquet").to_pylist()
    trained = next(row["row_id"] for row in split if row["split"] == "train")
    held_out = next(row["row_id"] for row in split if row["split"] == "held_out")
    bring_up_to_date(load_recipe(recipe(0.9, gate="none")))
    withdraw(path, [trained], [], "asked by mail")
    bring_up_to_date(load_recipe(path))
    store = ArtifactStore().open()
    carry_out(store, plan_of(store, ["small"], everything=True, keep=0))

    told = row_lineage(trained)
    assert [one["split"] for one in told["policies"]] == ["train", "train"], "the third never saw it"
    newer, older = told["policies"]
    assert newer["registered"] == []
    assert older["registered"] == [{"model": "small", "version": "1", "champion": True}]
    assert older["weights"] == "kept"
    assert newer["weights"].startswith("erased on")
    assert {one["recipe"] for one in told["policies"]} == {"small"}
    assert told["withdrawn"]["small"]["reason"] == "asked by mail"
    assert [one["split"] for one in row_lineage(held_out)["policies"]] == ["held_out"] * 3
    show_row(told)
    page = capsys.readouterr().out
    assert "trained on it; small version 1 (champion); weights kept" in page
    assert "never registered" in page
    assert "withdrawn from small" in page

    show_row(row_lineage("f" * 32))
    assert "no policy in this store was given row" in capsys.readouterr().out


def test_what_is_not_registered_is_said(recipe: Callable[..., Path], home: Path) -> None:
    loaded: Recipe = load_recipe(recipe())
    with pytest.raises(BadInput, match=f"no registered model '{loaded.name}'"):
        lineage_of(loaded.name)
