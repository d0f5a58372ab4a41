"""LoRA beside frozen weights in four bits (QLoRA): one set of numbers from scorer to saved checkpoint."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.data.manifest import read_manifest
from alignment.data.tokens import TokenSequence
from alignment.errors import BadInput
from alignment.methods import method_of
from alignment.models.checkpoint import load_model
from alignment.models.quantised import NF4_BYTES, dequantised, elements
from alignment.recipe import Dpo
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE
from alignment.stages.sft_checkpoint import STAGE as SFT
from alignment.stages.stage import PolicySummary, ReferenceSummary
from alignment.training.agreement import Disagreement
from tests.alignment.training.conftest import interrupted_at

LORA = {"rank": 4, "alpha": 8, "quantise": "nf4"}
SEQUENCES = [TokenSequence((0, n, n + 1, n + 2), (n + 3, n + 7, 9, n + 5, 1)) for n in range(4, 20)]


def scores(model: Any) -> list[float]:
    from alignment.logprobs.scorer import logps

    return logps(model, SEQUENCES, 400)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_scorer_trainer_and_saved_checkpoint_see_the_same_four_bits(lab: Any, precision: str) -> None:
    checkpoint, rows = lab.checkpoint(kind="qwen2"), lab.rows(24)
    method = method_of(Dpo())
    manifest = lab.scored_manifest(checkpoint, rows, method, precision=precision, held_out_fraction=0.3, quantise="nf4")
    request = lab.dpo_request(
        checkpoint, manifest, lora=LORA | {"keep_adapter": True}, precision=precision, learning_rate=2e-2, epochs=4
    )
    commit = execute(STAGE, request, lab.store)
    summary = PolicySummary.of(commit)
    assert summary.agreement["worst_nats"] <= (1e-4 if precision == "float32" else 0.02)
    assert summary.first_loss == pytest.approx(0.6931, abs=1e-3 if precision == "float32" else 2e-2)
    assert summary.held_out["margin"] > 0.1
    start, folder = lab.store.fetch(checkpoint), lab.store.fetch(commit.artifact)
    saved = load_model(folder, precision)
    assert saved.dtype == getattr(torch, precision) and not getattr(saved, "is_quantized", False)
    from peft import PeftModel

    trained = PeftModel.from_pretrained(load_model(start, precision, quantise="nf4"), folder / "adapter").eval()
    near = 1e-4 if precision == "float32" else 0.6
    assert scores(saved) == pytest.approx(scores(trained.get_base_model()), abs=near)
    unquantised = PeftModel.from_pretrained(load_model(start, precision), folder / "adapter").eval()
    apart = [abs(a - b) for a, b in zip(scores(saved), scores(unquantised.get_base_model()), strict=True)]
    assert max(apart) > 10 * near if precision == "float32" else True, "four bits are another model"
    assert summary.adapter is not None and summary.adapter.quantise == "nf4"
    assert "quantization_config" not in (folder / "config.json").read_text()


def test_references_of_the_whole_model_are_another_key_and_refused(lab: Any) -> None:
    checkpoint, rows = lab.checkpoint(kind="qwen2"), lab.rows(8)
    method = method_of(Dpo())
    plain, quantised = (lab.scored_manifest(checkpoint, rows, method, quantise=quantise) for quantise in (None, "nf4"))
    first, second = (read_manifest(lab.store.fetch(manifest)).shards[0] for manifest in (plain, quantised))
    assert first.fingerprint != second.fingerprint
    assert ReferenceSummary.of(lab.store.commit_of(second.reference)).cache_hits == 0
    with pytest.raises((BadInput, Disagreement), match=r"fingerprint|reference"):
        execute(STAGE, lab.dpo_request(checkpoint, plain, lora=LORA), lab.store)
    again = execute(STAGE, lab.dpo_request(checkpoint, quantised, lora=LORA), lab.store)
    assert again.key != execute(STAGE, lab.dpo_request(checkpoint, plain, lora={"rank": 4, "alpha": 8}), lab.store).key


def test_a_pass_and_its_gradient_are_those_of_the_dequantised_weights(lab: Any) -> None:
    from bitsandbytes.nn import Linear4bit

    folder = lab.store.fetch(lab.checkpoint(kind="qwen2"))
    quantised, plain = load_model(folder, "float32", quantise="nf4"), load_model(folder, "float32")
    values = dequantised(quantised)
    assert {name for name in values if "lm_head" in name} == set() and len(values) == 7 * len(plain.model.layers)
    for name, value in values.items():
        assert not torch.equal(plain.get_parameter(name), value)
        plain.get_parameter(name).data = value
    embedded = torch.randn(1, 9, plain.config.hidden_size, generator=torch.Generator().manual_seed(1))
    found = []
    for model in (quantised, plain):
        given = embedded.clone().requires_grad_()
        logits = model(inputs_embeds=given).logits
        logits.square().sum().backward()
        found.append((logits.detach(), given.grad))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    layers = [layer for layer in quantised.modules() if isinstance(layer, Linear4bit)]
    assert sum(elements(layer.weight) for layer in layers) == sum(value.numel() for value in values.values())
    packed = sum(layer.weight.nbytes + layer.weight.quant_state.absmax.nbytes for layer in layers)
    scales = sum(layer.weight.quant_state.state2.absmax.nbytes for layer in layers)
    assert packed + scales == pytest.approx(NF4_BYTES * sum(map(elements, (x.weight for x in layers))), rel=0.02)


def test_an_interrupted_training_and_sft_beside_four_bits_end_as_others_do(lab: Any) -> None:
    checkpoint, rows = lab.checkpoint(kind="qwen2"), lab.rows(16)
    manifest = lab.scored_manifest(checkpoint, rows, method_of(Dpo()), quantise="nf4")
    request = lab.dpo_request(checkpoint, manifest, lora=LORA, save_steps=2, learning_rate=1e-2)
    twin = lab.twin(lab.root / "twin")
    whole = execute(STAGE, request, lab.store)
    with interrupted_at(3):
        execute(STAGE, request, twin)
    again = execute(STAGE, request, twin)
    assert PolicySummary.of(again).resumed_from_step == 2 and again.digest == whole.digest
    tuned = execute(SFT, lab.sft_request(checkpoint, lab.sft_dataset(12, held_out=4), lora=LORA), lab.store)
    assert load_model(lab.store.fetch(tuned.artifact), "float32").dtype == torch.float32


def test_where_four_bits_cannot_be_the_recipe_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment.recipe import parse_recipe
    from resources.compute import ComputePools, check_packages
    from resources.pools import load_pools

    def recipe(**optimise: Any) -> Any:
        given = {"path": "model"}
        return parse_recipe(
            {
                "name": "q",
                "base_model": given,
                "sft": {"adopt": given},
                "preferences": {"files": ["pairs.jsonl"]},
                "optimise": optimise,
            },
            "q.yaml",
            {},
        )

    assert recipe(lora=LORA).dpo.quantise == "nf4"
    with pytest.raises(
        BadInput, match=r"lora\.quantise needs the whole model in one process: leave out lora\.quantise"
    ):
        recipe(lora=LORA, sharded=True)
    with pytest.raises(BadInput, match="nf4"):
        recipe(lora=LORA | {"quantise": "int4"})
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else known(name, *more)
    )
    with pytest.raises(BadInput, match=r"nf4 needs the package bitsandbytes.*install alignment-dags\[qlora\]"):
        check_packages(recipe(lora=LORA), load_pools())
    check_packages(recipe(lora={"rank": 4}), load_pools())
    elsewhere = ComputePools(changes={"local": {"launcher": "ray"}}).load()
    check_packages(recipe(lora=LORA), elsewhere)  # the image that Ray's workers have may hold it


def test_a_model_without_linear_layers_is_refused_by_name(tmp_path: Path) -> None:
    from alignment.models.quantised import settle

    with pytest.raises(BadInput, match="no linear layers"):
        settle(torch.nn.Embedding(3, 4), tmp_path)  # type: ignore[arg-type]
