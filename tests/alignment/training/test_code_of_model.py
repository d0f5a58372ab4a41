"""A model whose own code may run is trained with it, and what is trained carries the code on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from alignment.models.checkpoint import load_model
from alignment.models.code import RUNS_CODE
from alignment.models.pin import pin_model
from alignment.recipe import ModelSource
from alignment.stages import execute
from alignment.stages.base_model import STAGE as BASE
from alignment.stages.base_model import BaseModelRequest
from alignment.stages.policy_checkpoint import STAGE as DPO
from alignment.stages.sft_checkpoint import STAGE as SFT

if TYPE_CHECKING:
    from tests.alignment.training.conftest import Lab

CONFIGURATION = """
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = "own"
"""
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def base(lab: Lab, tmp_path: Path, code_of_models: None) -> Any:
    """A pinned base model of a class of its own, which the recipe lets run."""
    plain = lab.store.fetch(lab.checkpoint())
    folder = tmp_path / "own"
    folder.mkdir()
    for path in plain.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODELING)
    pin = pin_model(ModelSource(path=str(folder), run_code_of_model=True))
    return execute(BASE, BaseModelRequest(pin=pin, seed=0), lab.store)


def test_fine_tuned_and_aligned_checkpoints_carry_the_code_and_say_that_it_runs(lab: Lab, base: Any) -> None:
    sft = execute(SFT, lab.sft_request(base.artifact, lab.sft_dataset(8)), lab.store)
    manifest = lab.manifest(sft.artifact, lab.rows(8))
    policy = execute(DPO, lab.dpo_request(sft.artifact, manifest), lab.store)
    for commit in (sft, policy):
        assert commit.summary[RUNS_CODE] == base.summary[RUNS_CODE]
        assert commit.summary["config_digest"] == base.summary["config_digest"]
        folder = lab.store.fetch(commit.artifact)
        assert (folder / "modeling_own.py").read_text() == MODELING
        assert type(load_model(folder, "float32", runs_code=True)).__name__ == "OwnForCausalLM"
