"""An adapter that is kept beside the checkpoint it is merged into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from alignment.errors import BadInput
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE
from alignment.stages.sft_checkpoint import STAGE as SFT
from alignment_dags.registry.export import export
from alignment_dags.retention.checkpoints import WEIGHTS

LORA = {"rank": 4, "alpha": 8}


def on_top_of(base: Path, adapter: Path, precision: str) -> Any:
    """The adapter as a server loads it: PEFT's own reader, on the checkpoint that training started from."""
    from peft import PeftModel

    from alignment.models.checkpoint import load_model

    return PeftModel.from_pretrained(load_model(base, precision), adapter).eval()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_kept_adapter_on_its_base_answers_as_the_merged_checkpoint_whose_digest_is_the_same_without_it(
    lab: Any, precision: str, score_alone: Any
) -> None:
    from alignment.models.checkpoint import load_model

    checkpoint = lab.checkpoint(kind="qwen2")
    manifest = lab.manifest(checkpoint, lab.rows(12), precision=precision)
    asked = {"precision": precision, "learning_rate": 2e-2, "epochs": 4}
    plain, kept = (
        execute(STAGE, lab.dpo_request(checkpoint, manifest, lora=LORA | more, **asked), lab.store)
        for more in ({}, {"keep_adapter": True})
    )
    assert kept.key != plain.key and kept.digest == plain.digest
    assert "adapter" not in plain.summary and not any(name.startswith("adapter") for name in plain.files)
    folder = lab.store.fetch(kept.artifact)
    assert sorted(path.name for path in (folder / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]

    def scores(model: Any) -> list[float]:
        return [score_alone(model, [0, n, n + 1, n + 2], [n + 3, n + 7, 9, n + 5, 1]) for n in range(4, 20)]

    base, merged = (scores(load_model(path, "float32")) for path in (lab.store.fetch(checkpoint), folder))
    adapted = scores(on_top_of(lab.store.fetch(checkpoint), folder / "adapter", "float32"))
    assert adapted == pytest.approx(merged, abs=2e-3)
    assert sum(abs(one - other) for one, other in zip(base, merged, strict=True)) / len(base) > 0.5


def test_an_adapter_names_its_base_by_digest_or_source_and_no_path_of_this_machine(lab: Any) -> None:
    checkpoint = lab.checkpoint(kind="qwen2")
    manifest = lab.manifest(checkpoint, lab.rows(4))
    commit = execute(STAGE, lab.dpo_request(checkpoint, manifest, lora=LORA | {"keep_adapter": True}), lab.store)
    config = json.loads((lab.store.fetch(commit.artifact) / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"checkpoint:{checkpoint.digest}"
    assert (config["r"], config["lora_alpha"], config["inference_mode"]) == (4, 8, True)
    assert config["target_modules"] == sorted(config["target_modules"])
    assert str(lab.root) not in json.dumps(config)
    about = commit.summary["adapter"]
    assert about | {"parameters": 0} == {
        "base": f"checkpoint:{checkpoint.digest}",
        "revision": None,
        "base_digest": checkpoint.digest,
        "rank": 4,
        "alpha": 8,
        "parameters": 0,
    }
    assert about["parameters"] > 0
    base, dataset = lab.adopted({"hub": "team/model", "revision": "abc"}), lab.sft_dataset(4)
    tuned = execute(SFT, lab.sft_request(base, dataset, lora=LORA | {"keep_adapter": True}), lab.store)
    config = json.loads((lab.store.fetch(tuned.artifact) / "adapter/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("team/model", "abc")
    assert tuned.summary["adapter"]["base_digest"] == base.digest


def test_an_export_takes_the_checkpoint_without_the_adapter_or_the_adapter_alone(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = lab.checkpoint(kind="qwen2")
    manifest = lab.manifest(checkpoint, lab.rows(4))
    policies = {
        name: execute(STAGE, lab.dpo_request(checkpoint, manifest, lora=LORA | more), lab.store)
        for name, more in (("kept", {"keep_adapter": True}), ("plain", {}))
    }
    for name, policy in policies.items():
        lab.register(name, policy.artifact)
    monkeypatch.setenv("ALIGN_STORE", str(lab.store.root))
    whole = export("kept", tmp_path / "whole", print)
    assert "model.safetensors" in whole["files"] and not any("adapter" in name for name in whole["files"])
    alone = export("kept", tmp_path / "alone", print, adapter=True)
    assert sorted(["README.md", *alone["files"]]) == sorted(path.name for path in (tmp_path / "alone").iterdir())
    card = ModelCard((tmp_path / "alone" / "README.md").read_text(encoding="utf-8"))
    assert card.data.library_name == "peft" and "what the gate said, and every evaluation" in alone["unknown"]
    assert sorted(alone["files"]) == ["adapter_config.json", "adapter_model.safetensors"]
    assert alone["adapter"]["base_digest"] == checkpoint.digest
    on_top_of(lab.store.fetch(checkpoint), tmp_path / "alone", "float32")
    with pytest.raises(BadInput, match=r"plain has no adapter: train it with lora\.keep_adapter"):
        export("plain", tmp_path / "none", print, adapter=True)
    assert [name for name in policies["kept"].files if name.endswith(WEIGHTS)] == [
        "adapter/adapter_model.safetensors",
        "model.safetensors",
    ], "both are erased together"
