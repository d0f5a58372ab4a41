"""Models that train on something else than the recipe says, unless somebody looks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.errors import BadInput
from alignment.models.checkpoint import checkpoint_summary, digest_checkpoint, load_model
from alignment.recipe import Dpo, Lora
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE
from alignment.stages.sft_checkpoint import STAGE as SFT
from alignment.training.held_out_pairs import HELD_OUT_FILE, parse_held_out
from alignment.training.models import TrainedModel
from tests.alignment.training.conftest import SPREAD
from tests.tiny import letter_tokenizer, write_model

EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
ROUTED: dict[str, Any] = {**EXPERTS, "output_router_logits": True, "router_aux_loss_coef": 5.0}
DROPPING: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 48, "dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5, "word_embed_proj_dim": 32},
    "falcon": {"hidden_dropout": 0.5, "attention_dropout": 0.5, "new_decoder_architecture": True, "num_kv_heads": 2},
    "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5, "n_layer": 2, "n_head": 4},
    "gpt_bigcode": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "dbrx": {
        **{"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 96, "resid_pdrop": 0.5},
        "attn_config": {"attn_pdrop": 0.5, "kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 2, "moe_top_k": 1},
    },
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5, "n_embd": 32, "n_layer": 2, "n_head": 4},
}


def adopted(lab: Any, family: str, **changed: Any) -> Any:
    folder = write_model(lab.root / f"model-{lab.made}", letter_tokenizer(), family, seed=7, **{**SPREAD, **changed})
    return lab.adopt(folder, digest_checkpoint(folder), checkpoint_summary(folder))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_mixture_of_experts_trains_on_the_recipes_loss_alone(lab: Any, precision: str) -> None:
    checkpoint = adopted(lab, "qwen3_moe", **ROUTED)
    manifest = lab.manifest(checkpoint, lab.rows(8), precision=precision)
    summary = execute(STAGE, lab.dpo_request(checkpoint, manifest, precision=precision), lab.store).summary
    assert summary["first_loss"] == pytest.approx(math.log(2), abs=1e-5 if precision == "float32" else 0.02)


def test_fine_tuning_a_mixture_of_experts_has_no_router_term_either(lab: Any) -> None:
    dataset = lab.sft_dataset(8)
    losses = [
        execute(SFT, lab.sft_request(adopted(lab, "qwen3_moe", **EXPERTS, **how), dataset), lab.store).summary
        for how in ({"output_router_logits": True, "router_aux_loss_coef": 5.0}, {"output_router_logits": False})
    ]
    assert losses[0]["history"][0]["loss"] == losses[1]["history"][0]["loss"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_whose_state_runs_over_the_sequence_is_trained_in_padded_passes(
    lab: Any, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = adopted(lab, "mamba", state_size=8)
    manifest = lab.manifest(checkpoint, lab.rows(12), precision=precision, held_out_fraction=0.2)
    with caplog.at_level("INFO"):
        request = lab.dpo_request(checkpoint, manifest, precision=precision, epochs=2.0, learning_rate=1e-2)
        summary = execute(STAGE, request, lab.store).summary
    assert "prompts are not shared on MambaForCausalLM" in caplog.text
    assert summary["first_loss"] == pytest.approx(math.log(2), abs=1e-4 if precision == "float32" else 0.05)
    assert summary["history"][-1]["loss"] < summary["first_loss"]


@pytest.mark.parametrize("family", DROPPING)
def test_a_policy_drops_nothing_whatever_its_layers_take_dropout_from(family: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / family, letter_tokenizer(), family, **{**SPREAD, **DROPPING[family]})
    ids = torch.tensor([[0, *range(4, 24)]])
    with torch.no_grad():
        dropping = load_model(folder, "float32").train()
        assert not torch.equal(dropping(ids).logits, dropping(ids).logits), "this family drops units in training"
        policy = TrainedModel(folder, Dpo(precision="float32"), dropout=False).model.train()
        assert torch.equal(policy(ids).logits, policy(ids).logits)
        assert torch.equal(policy(ids).logits, load_model(folder, "float32")(ids).logits)


def test_lora_on_tied_embeddings_is_refused_by_name(lab: Any) -> None:
    checkpoint = lab.checkpoint()  # a llama with tied embeddings
    manifest = lab.manifest(checkpoint, lab.rows(4))
    for target in ("embed_tokens", "lm_head"):
        request = lab.dpo_request(checkpoint, manifest, lora={"target_modules": ["q_proj", target]})
        with pytest.raises(
            BadInput, match=rf"field 'lora.target_modules': LoRA on (model\.)?{target} .* tied to the head"
        ):
            execute(STAGE, request, lab.store)


def test_lora_on_embeddings_of_their_own_is_saved_as_it_was_trained(lab: Any) -> None:
    checkpoint = lab.checkpoint(kind="qwen2")  # untied
    manifest = lab.manifest(checkpoint, lab.rows(8))
    lora = Lora(rank=4, alpha=8, target_modules=["embed_tokens"])
    execute(STAGE, lab.dpo_request(checkpoint, manifest, lora=lora.model_dump()), lab.store)


def test_held_out_pairs_are_measured_on_the_saved_folder(lab: Any, score_alone: Any) -> None:
    """LoRA's were measured before merging and rounding: +0.00007 reported, -0.00023 saved."""
    checkpoint = lab.checkpoint(kind="qwen2", dtype="bfloat16")
    manifest = lab.manifest(checkpoint, lab.rows(24), precision="bfloat16", held_out_fraction=0.3)
    lora = {"rank": 4, "alpha": 8}
    request = lab.dpo_request(checkpoint, manifest, precision="bfloat16", lora=lora, learning_rate=1e-2, epochs=3)
    commit = execute(STAGE, request, lab.store)
    saved = load_model(lab.store.fetch(commit.artifact), "bfloat16")
    from alignment.data.tokens import Tokenization
    from alignment.logprobs.scorer import logps
    from alignment.models.checkpoint import load_tokenizer
    from alignment.recipe import TokenPolicy

    tokens = Tokenization(load_tokenizer(lab.store.fetch(checkpoint)), TokenPolicy(max_length=64))
    sides = {row.row_id: tokens.pair(row) for row in lab.rows(24)}
    pairs = parse_held_out(lab.store.read(commit.artifact, HELD_OUT_FILE))
    assert len(pairs) > 2
    for pair in pairs:
        assert [pair.chosen_logp, pair.rejected_logp] == logps(saved, list(sides[pair.row_id]), 2048)
