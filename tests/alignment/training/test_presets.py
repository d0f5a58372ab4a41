"""Every preset trains a model of two layers with its own method, settings, schedule and token policy."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.data.validate import halves
from alignment.recipe import load_recipe
from alignment.recipe.load import RECIPES
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE
from alignment.stages.stage import PolicySummary

PRESETS = sorted(path.stem for path in (RECIPES / "presets").glob("*.yaml"))
SMALLER = {"sharded": False, "precision": "float32", "batch_size": 8, "max_steps": 2, "epochs": 1.0, "stop": None}
"""What a machine without GPUs changes of a training; the rest is the preset's."""
CHAT = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_at_two_layers(lab: Any, name: str) -> None:
    recipe = load_recipe(RECIPES / "presets" / f"{name}.yaml")
    tokens = recipe.tokens.model_copy(update={"max_length": 64, "max_prompt_length": None})
    checkpoint = lab.checkpoint(kind="qwen2", template=CHAT)
    for link in recipe.links:
        settings = link.as_dpo().model_copy(update=SMALLER)
        method, rows = settings.method, lab.rows(20, chat=True)
        if method.data == "unpaired":
            rows = [half for row in rows for half in halves(row)]
        if method.needs_reference:
            how = {"held_out_fraction": 0.2, "tokens": tokens, "quantise": settings.quantise}
            manifest = lab.scored_manifest(checkpoint, rows, method, **how)
        else:
            manifest = lab.manifest(checkpoint, rows, held_out_fraction=0.2, referenced=False)
        given = settings.model_dump(exclude={"weighted", "target_margin", "margin_scale"})
        given = {key: value for key, value in given.items() if key in settings.model_fields_set or key in SMALLER}
        request = lab.dpo_request(checkpoint, manifest, tokens=tokens, **given)
        assert request.settings.method == method, "the preset's own"
        commit = execute(STAGE, request, lab.store)
        summary = PolicySummary.of(commit)
        assert summary.steps == 2 and summary.rows_trained and summary.rows_held_out
        assert summary.held_out and all(value is not None for value in summary.held_out.values())
        checkpoint = commit.artifact
