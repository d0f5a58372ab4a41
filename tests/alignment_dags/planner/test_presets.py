"""Every shipped preset is a recipe that fits its pool, by the plan of its real dimensions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.data.hub import HubUnreachable
from alignment.models.checkpoint import read_config
from alignment.recipe import load_recipe
from alignment.store import Store
from alignment_dags.planner.forecast import forecast, model_config
from alignment_dags.run.workspace import Workspace
from resources.home import PROJECT
from resources.pools import load_pools

PRESETS = PROJECT / "recipes" / "presets"
CONFIGS = PROJECT / "alignment_dags" / "planner" / "models"
MODELS = {
    "7b_qlora_24gb": "mistral_7b_v0.1",
    "dpo_then_simpo": "mistral_7b_v0.1",
    "kto_thumbs": "llama_3.1_8b",
    "llama31_dpo": "llama_3.1_8b",
    "llama3_rounds": "llama_3.1_8b",
    "modern_llm_small": "qwen2.5_0.5b",
    "olmo3_7b_delta": "olmo_3_7b",
    "olmo3_delta": "olmo_3_7b",
    "orpo_from_base": "mistral_7b_v0.1",
    "simpo_gemma2_9b": "gemma_2_9b",
    "simpo_llama3_8b": "llama_3_8b",
    "simpo_llama3_8b_base": "llama_3_8b",
    "simpo_llama3_8b_v02": "llama_3_8b",
    "simpo_mistral_7b_base": "mistral_7b_v0.1",
    "simpo_mistral_7b_instruct": "mistral_7b_v0.1",
    "smollm3_apo": "smollm3_3b",
    "tulu3_8b_dpo": "llama_3.1_8b",
    "zephyr_7b": "mistral_7b_v0.1",
    "zephyr_ddpo": "mistral_7b_v0.1",
}
OURS = {"7b_qlora_24gb", "dpo_then_simpo", "kto_thumbs", "modern_llm_small", "orpo_from_base"}


def test_every_preset_is_planned_here_and_says_whose_values_it_has() -> None:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in PRESETS.glob("*.yaml")}
    assert texts.keys() == MODELS.keys()
    assert {
        name for name, text in texts.items() if "# Starting point: not a published recipe, values are ours." in text
    } == OURS
    for name, text in texts.items():
        assert yaml.safe_load(text)["name"] == (name if name[0].isalpha() else "qlora_7b_24gb")
        if name not in OURS:
            head = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
            assert "Published" in head and re.search(r"arXiv|huggingface/|allenai/|princeton-nlp/", head)


def test_a_preset_is_planned_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment_dags.planner.forecast.hub_config", unreachable)
    for name, dimensions in MODELS.items():
        recipe = load_recipe(PRESETS / f"{name}.yaml")
        found = model_config(Workspace(recipe, load_pools(), lambda: Store(str(tmp_path))), [])
        assert found.config == read_config(CONFIGS / f"{dimensions}.json"), name
        assert found.source.startswith("the dimensions of ") and found.source.endswith("; the hub is not there")


def unreachable(name: str, revision: str | None) -> dict[str, Any]:
    raise HubUnreachable("the hub is not there")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_preset_fits_the_pools_that_it_names(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"extends: presets/{name}\nname: mine\n", encoding="utf-8")
    store = Store(str(tmp_path / "store"))
    planned = forecast(
        Workspace(load_recipe(path), load_pools(), lambda: store), CONFIGS / f"{MODELS[name]}.json", 60_000
    )
    in_pools = {stage.stage: stage for stage in planned if stage.pool is not None}
    assert {stage.pool for stage in in_pools.values()} <= {"h100", "h100_node"}
    assert {name: stage.fits for name, stage in in_pools.items()} == dict.fromkeys(in_pools, True)
    for stage in in_pools.values():
        assert sum(stage.memory_parts_gib.values()) == pytest.approx(stage.memory_gib.value)
    if name == "7b_qlora_24gb":
        assert max(stage.memory_gib.value or 0 for stage in in_pools.values()) <= 22.4
    trained = [stage for name, stage in in_pools.items() if name.endswith(("policy_checkpoint", "logprobs"))]
    assert all(stage.slot_seconds.value and stage.cost.value for stage in trained)
