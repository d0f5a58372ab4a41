"""Every method with all weights and with adapters, in one process and in two: both learn the same.

The two processes train all cases one after the other, as a launch takes longer than a training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from alignment.methods import METHODS
from alignment.recipe import TokenPolicy
from alignment.stages import execute
from alignment.stages.policy import DpoRequest
from alignment.stages.policy_checkpoint import STAGE
from alignment.store import Commit, Store
from tests.alignment.training.two_processes import TwoProcesses

NEEDED: dict[str, dict[str, Any]] = {
    "cdpo": {"label_smoothing": 0.1},
    "robust": {"label_smoothing": 0.1},
    "sigmoid_norm": {"beta": 2.0},
}
ADAPTER = {"rank": 4, "alpha": 8, "keep_adapter": True}
STARTS = {"all weights": {}, "LoRA": {"lora": ADAPTER, "learning_rate": 1e-2}}
FOUR_BITS: dict[str, Any] = {"lora": ADAPTER | {"quantise": "nf4"}, "learning_rate": 1e-2}
MASK = {"tokens": TokenPolicy(max_length=64, format_tokens="mask")}
LOOKS = {"keep_steps": 2, "stop": {"eval_steps": 2, "median_margin": 1e6, "kl": 1e6, "patience": 50}}
BESIDE = {"sft_rows_fraction": 0.25}
"""Of a step of 8 rows two, and one beside the last step's."""
COMBINED: dict[str, dict[str, Any]] = {
    "kto, SFT rows, masked, adapter": {"loss": "kto", **STARTS["LoRA"], **MASK, **BESIDE},
    "kto, rows without partners": {"loss": "kto", "alone": True},
    "kto, most steps": {"loss": "kto", "max_steps": 2, "desirable_weight": 2.0},
    "ld_dpo, masked, adapter, looks": {"loss": "ld_dpo", **STARTS["LoRA"], **MASK, **LOOKS},
    "ld_dpo, SFT rows": {"loss": "ld_dpo", **BESIDE},
    "ipo, looks, SFT rows": {"loss": "ipo", **LOOKS, **BESIDE},
    "orpo, looks": {"loss": "orpo", **LOOKS},
    "simpo, looks, adapter": {"loss": "simpo", **STARTS["LoRA"], **LOOKS},
    "cpo, looks, masked": {"loss": "cpo", **LOOKS, **MASK},
    "weighted, looks": {"loss": "sigmoid", "weighted": True, "sft_weight": 0.2, **LOOKS},
    "sigmoid, four bits, looks, recomputed": {"loss": "sigmoid", **FOUR_BITS, **LOOKS, "gradient_checkpointing": True},
    "kto, four bits, SFT rows": {"loss": "kto", **FOUR_BITS, **BESIDE},
    "ld_dpo, four bits, masked": {"loss": "ld_dpo", **FOUR_BITS, **MASK},
    "simpo, four bits": {"loss": "simpo", **FOUR_BITS},
    "target margins, looks": {"loss": "sigmoid_norm", "target_margin": "scores", "beta": 2.0, **LOOKS},
}
CASES = {
    f"{loss}, {start}": {"loss": loss, **settings, **NEEDED.get(loss, {})}
    for loss in METHODS
    for start, settings in STARTS.items()
} | COMBINED


@dataclass(frozen=True)
class Both:
    """What one process made of a case, and what two made of it; each with the store that holds it."""

    single: Commit
    together: Commit
    stores: tuple[Store, Store]


def requests(lab: Any) -> dict[str, tuple[DpoRequest, DpoRequest]]:
    """Each case's request for one process and for two."""
    from dataclasses import replace

    from alignment.data.validate import halves

    checkpoint, demonstrations = lab.checkpoint(kind="qwen2"), lab.sft_dataset(7)
    pairs = [
        replace(row, weight=0.5 + number % 3, chosen_score=2.0, rejected_score=float(number % 2))
        for number, row in enumerate(lab.rows(26))
    ]
    manifests: dict[Any, Any] = {}
    found = {}
    for name, given in CASES.items():
        settings = dict(given)
        tokens, alone = settings.pop("tokens", None), settings.pop("alone", False)
        method = METHODS[settings["loss"]]
        how = settings.get("lora", {}).get("quantise")
        kind = (method.needs_reference, method.data, method.first_tokens, tokens is not None, alone, how)
        if kind not in manifests:
            rows = [half for row in pairs for half in halves(row)] if method.data == "unpaired" else pairs
            if not method.needs_reference:
                manifests[kind] = lab.manifest(checkpoint, rows, held_out_fraction=0.3, referenced=False)
            elif alone:
                manifests[kind] = lab.scored_manifest(checkpoint, rows[:12], method, parts=12)
            else:
                manifests[kind] = lab.scored_manifest(
                    checkpoint, rows, method, held_out_fraction=0.3, tokens=tokens, quantise=how
                )
        if settings.get("sft_rows_fraction"):
            settings["sft_dataset"] = demonstrations
        made = {"batch_size": 8, "epochs": 1, "tokens": tokens, **settings}
        one, two = (lab.dpo_request(checkpoint, manifests[kind], world_size=size, **dict(made)) for size in (1, 2))
        found[name] = (one, two)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, two_processes: TwoProcesses) -> dict[str, Both]:
    from tests.alignment.training.conftest import Lab

    folder = tmp_path_factory.mktemp("matrix")
    lab = Lab(folder, Store(str(folder / "store")))
    asked = requests(lab)
    twin = lab.twin(folder / "twin")
    return {
        name: Both(execute(STAGE, one, lab.store), two_processes.execute(STAGE, two, twin), (lab.store, twin))
        for name, (one, two) in asked.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_learns(name: str, trained: dict[str, Both]) -> None:
    both = trained[name]
    ours, theirs = (commit.summary for commit in (both.together, both.single))
    assert len(ours["rows_per_rank"]) == 2 and all(ours["rows_per_rank"])
    assert sum(ours["rows_per_rank"]) == sum(theirs["rows_per_rank"])
    assert ours["tokens"] == theirs["tokens"] and ours["steps"] == theirs["steps"]
    for record, other in zip(ours["history"], theirs["history"], strict=True):
        assert record.keys() == other.keys()
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=2e-4)
    assert ours["held_out"] == pytest.approx(theirs["held_out"], rel=2e-2, abs=2e-2)
    assert ours.get("kept_step") == theirs.get("kept_step")
    assert "stopped_by" not in ours or ours["stopped_by"] is None


@pytest.mark.parametrize("name", [name for name, given in CASES.items() if "lora" in given])
def test_the_adapter_on_its_base_is_the_policy_whatever_trained_it(name: str, trained: dict[str, Both]) -> None:
    import torch
    from peft import PeftModel

    from alignment.models.checkpoint import load_model
    from alignment.models.quantised import dequantised

    both = trained[name]
    for commit, store in zip((both.single, both.together), both.stores, strict=True):
        base = load_model(store.fetch(commit.inputs["checkpoint"]), "float32")
        if how := CASES[name]["lora"].get("quantise"):
            for weight, value in dequantised(load_model(base.name_or_path, "float32", quantise=how)).items():
                base.get_parameter(weight).data = value
        folder = store.fetch(commit.artifact)
        merged = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload().state_dict()
        for weight, value in load_model(folder, "float32").state_dict().items():
            torch.testing.assert_close(merged[weight], value, msg=weight)
