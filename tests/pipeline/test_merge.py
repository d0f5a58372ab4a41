"""A merged policy goes through the same evaluations and gate, and is merged with the champion of another night."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alignment.data.withdrawal import Tombstone, bury
from alignment.errors import BadInput
from alignment.models.checkpoint import load_model
from alignment.recipe import load_recipe
from alignment.stages.stage import PolicySummary
from alignment_dags.nights.state import state_of
from alignment_dags.planner.forecast import forecast
from alignment_dags.registry.lineage import lineage_of
from alignment_dags.registry.rows import row_lineage
from alignment_dags.run.workspace import Workspace
from assets.building.upstream import Upstream
from assets.card import card_of
from assets.evaluation_report import gate_and_baselines
from assets.merge import champion_to_merge
from assets.registration import RegistrationSummary
from resources.pools import load_pools

GATE = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}, "any_improves": False}


@pytest.fixture
def written(small_recipe: dict[str, Any], tmp_path: Path) -> Path:
    small_recipe["optimise"] = {"method": "dpo", "precision": "float32", "learning_rate": 1e-3, "batch_size": 8}
    del small_recipe["dpo"]
    merge = [
        {"of": "policy", "weight": 0.5},
        {"of": "sft", "weight": 0.1},
        {"model": {"path": small_recipe["base_model"]["path"]}, "weight": 0.1},
        {"of": "champion", "weight": 0.3},
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe | {"merge": merge, "gate": GATE}), encoding="utf-8")
    return path


def test_a_policy_is_merged_measured_and_registered(written: Path, bring_up_to_date: Callable[..., Upstream]) -> None:
    recipe = load_recipe(written)
    upstream = bring_up_to_date(recipe)
    store = upstream.store
    trained, merged = (store.commit_of(upstream(name)) for name in ("trained/policy_checkpoint", "policy_checkpoint"))
    sft = upstream("sft_checkpoint")
    summary = PolicySummary.of(merged)
    shares = {"policy": 5 / 7, "sft": 1 / 7, "model_3": 1 / 7}
    assert summary.merged == pytest.approx(shares, abs=1e-6), "there is no champion yet"
    states = [
        load_model(store.fetch(each), "float32").state_dict() for each in (trained.artifact, sft, merged.artifact)
    ]
    for name, tensor in states[2].items():
        torch.testing.assert_close(tensor, 5 / 7 * states[0][name] + 2 / 7 * states[1][name])
    before = PolicySummary.of(trained)
    assert 0 < summary.held_out["margin"] < before.held_out["margin"], "measured anew, on the average"
    assert summary.rows_trained == before.rows_trained

    registration = store.commit_of(upstream("registered_model"))
    assert RegistrationSummary.of(registration).registered and registration.inputs["policy"] == merged.artifact
    assert lineage_of("small")["sft"]["digest"] == sft.digest
    assert "licence of the average model" in card_of(store, registration).licences, "its weights are in it"
    (row, *_) = [cells for cells in _rows(upstream) if cells["split"] == "train"]
    assert {found["digest"] for found in row_lineage(row["row_id"])["policies"]} == {trained.digest, merged.digest}

    workspace = Workspace(recipe, load_pools())
    assert [one.stage for one in forecast(workspace) if one.to_make] == []
    assert state_of(workspace).train == (), "a registered average is not merged with itself"

    text = written.read_text(encoding="utf-8")
    written.write_text(text.replace("learning_rate: 0.001", "learning_rate: 0.002"), encoding="utf-8")
    again = bring_up_to_date(load_recipe(written))
    second = store.commit_of(again("policy_checkpoint"))
    assert second.inputs["parts.champion"] == merged.artifact
    assert PolicySummary.of(second).merged == {"policy": 0.5, "sft": 0.1, "model_3": 0.1, "champion": 0.3}

    known = row_lineage(row["row_id"])["policies"]
    assert second.digest in {found["digest"] for found in known}
    bury(store, "small", "rows", [Tombstone(id=row["row_id"], at="2026-01-01T00:00:00+00:00")])
    withdrawn = Upstream(store, "small")
    assert champion_to_merge(withdrawn, withdrawn("trained/policy_checkpoint")) is None, "the row is in its weights"


def _rows(upstream: Upstream) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    found: list[dict[str, Any]] = pq.read_table(
        upstream.store.fetch(upstream("policy_checkpoint")) / "training_rows.parquet"
    ).to_pylist()
    return found


def test_a_model_of_another_architecture_is_refused_before_anything_runs(
    written: Path, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    other = write_model(tmp_path / "other", "llama", None, num_hidden_layers=3)
    recipe = yaml.safe_load(written.read_text(encoding="utf-8"))
    recipe["merge"] = [{"of": "policy", "weight": 0.9}, {"model": {"path": str(other)}, "weight": 0.1}]
    written.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with pytest.raises(BadInput) as error:
        gate_and_baselines(load_recipe(written), str(written))
    assert "field 'merge.1.model': is of another architecture than the policy: num_hidden_layers 3" in str(error.value)
