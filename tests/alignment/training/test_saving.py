"""A start with settings that Transformers refuses to save is trained and saved all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from alignment.models.checkpoint import checkpoint_summary, digest_checkpoint, load_model
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE as DPO
from alignment.stages.sft_checkpoint import STAGE as SFT

if TYPE_CHECKING:
    from tests.alignment.training.conftest import Lab

SETTINGS = {"bos_token_id": 0, "eos_token_id": 1, "do_sample": False, "temperature": 0.9, "top_p": 0.6}


@pytest.fixture
def start(lab: Lab, tmp_path: Path) -> Any:
    """A checkpoint with a temperature for greedy decoding."""
    from tests.alignment.training.conftest import write_tiny_model

    folder = write_tiny_model(tmp_path / "contradictory")
    (folder / "generation_config.json").write_text(json.dumps(SETTINGS))
    return lab.adopt(folder, digest_checkpoint(folder), checkpoint_summary(folder))


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_both_trainings_save_on_their_way_and_at_the_end_and_keep_the_settings(
    lab: Lab, start: Any, lora: dict[str, int] | None
) -> None:
    how = {"save_steps": 1, "lora": lora}
    sft = execute(SFT, lab.sft_request(start, lab.sft_dataset(8), **how), lab.store)
    policy = execute(DPO, lab.dpo_request(start, lab.manifest(start, lab.rows(8)), **how), lab.store)
    for commit in (sft, policy):
        folder = lab.store.fetch(commit.artifact)
        assert json.loads((folder / "generation_config.json").read_text()) == SETTINGS
        load_model(folder, "float32")
