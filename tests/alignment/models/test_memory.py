"""Planned memory beside what torch holds: state of the optimisers exactly, activations by what autograd saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.data.tokens import TokenSequence
from alignment.models.forward import packed_states
from alignment.models.memory import (
    Activations,
    PackedPass,
    Trained,
    activations,
    answering_bytes,
    gathered,
    scoring_bytes,
    training_bytes,
)
from alignment.models.recompute import recompute_cheap_parts
from alignment.models.shape import FAMILIES, GELUS, Shape, shape_of
from alignment.recipe import Lora
from alignment.training.trainer import MasterAdamW

PROMPT, SIDES, ROWS = 40, (70, 62), 4
PACKED = PackedPass.of([(PROMPT, SIDES)] * ROWS)
NEAR = 0.1
"""What activations may be off by."""
OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": 160, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "shared_expert_intermediate_size": 112,
    },
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 96},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}
"""Settings that other architectures do not have."""
TARGETS = {"phi3": "qkv_proj", "gpt2": "c_attn"}


def model_of(kind: str, precision: str, **settings: Any) -> Any:
    config = AutoConfig.for_model(
        kind,
        **OWN.get(kind, {})
        | {
            "vocab_size": 97,
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "pad_token_id": 0,
        }
        | settings,
    )
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, precision)).train()


def shape(model: Any) -> Shape:
    known = shape_of(model.config.to_dict())
    assert known is not None
    return known


def groups() -> list[list[TokenSequence]]:
    def ids(count: int, seed: int) -> tuple[int, ...]:
        return tuple((7 * place + seed) % 97 for place in range(count))

    return [[TokenSequence(ids(PROMPT, row), ids(side, row)) for side in SIDES] for row in range(ROWS)]


def saved_bytes(model: Any) -> int:
    """Storages that autograd keeps of one packed pass, weights left out; and cosines and sines, which a checkpointed
    layer keeps as arguments of what it calls again."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    rotary = [module for module in model.modules() if hasattr(module, "rope_type")]
    assert rotary or model.config.model_type == "gpt2"
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, made: [keep(each) for each in made] and None)
        for module in rotary
    ]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        packed_states(model, groups())
    for hook in hooks:
        hook.remove()
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_activations_are_those_that_autograd_keeps(kind: str, precision: str) -> None:
    model = model_of(kind, precision)
    planned = activations(shape(model), PACKED, precision, flash=False)
    assert planned.kept(False) == pytest.approx(saved_bytes(model), rel=NEAR)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert planned.kept(True) == pytest.approx(saved_bytes(model), rel=NEAR)
    model.gradient_checkpointing_disable()
    recompute_cheap_parts(model)
    assert planned.kept("selective") == pytest.approx(saved_bytes(model), rel=NEAR)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", sorted(FAMILIES))
@pytest.mark.parametrize(("dropout", "few"), [(0.0, False), (0.1, False), (0.0, True)])
def test_activations_with_an_adapter_too(kind: str, precision: str, dropout: float, few: bool) -> None:
    from peft import LoraConfig, get_peft_model

    model = model_of(kind, precision)
    targets: Any = [TARGETS.get(kind, "q_proj")] if few else "all-linear"
    if FAMILIES[kind].adapted_experts and not few:
        assert shape(model).adapted(Lora()) is None, "what adapters beside experts keep is not counted"
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = Lora(rank=4, dropout=dropout, target_modules=targets)
    settings = LoraConfig(r=4, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings).train()
    adapted.enable_input_require_grads()
    planned = activations(shape(model), PACKED, precision, lora, flash=False)
    assert planned.kept(False) == pytest.approx(saved_bytes(adapted.get_base_model()), rel=NEAR)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert planned.kept(True) == pytest.approx(saved_bytes(adapted.get_base_model()), rel=NEAR)
    model.gradient_checkpointing_disable()
    recompute_cheap_parts(model)
    assert planned.kept("selective") == pytest.approx(saved_bytes(adapted.get_base_model()), rel=NEAR)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [{}, {"use_qk_norm": True, "attention_bias": True}], ids=str)
def test_activations_of_a_parallel_layer_with_norms_of_heads(precision: str, settings: dict[str, Any]) -> None:
    model = model_of("cohere", precision, **settings)
    assert activations(shape(model), PACKED, precision, flash=False).kept(False) == pytest.approx(
        saved_bytes(model), rel=NEAR
    )


@pytest.mark.parametrize("activation", sorted(GELUS))
def test_activations_of_gpt2_by_its_activation(activation: str) -> None:
    model = model_of("gpt2", "float32", activation_function=activation)
    assert activations(shape(model), PACKED, "float32", flash=False).kept(False) == pytest.approx(
        saved_bytes(model), rel=NEAR
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "wide"), [("llama", True), ("llama", False), ("gpt2", True), ("qwen2_moe", True)])
def test_weights_gradients_masters_and_moments_are_exactly_those_of_the_optimiser(
    kind: str, precision: str, wide: bool
) -> None:
    model = model_of(kind, precision)
    weights = list(model.parameters())
    seen: dict[str, float] = {}
    settings: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.0}
    if precision == "bfloat16":
        optimiser: Any = MasterAdamW([{"params": weights, "weight_decay": 0.0}], lr=1e-3)
        if wide:
            optimiser.accumulate_in_float32()
    else:
        optimiser = torch.optim.AdamW(weights, **settings)
    packed_states(model, groups()).sum().backward()
    for weight in model.lm_head.parameters():  # the head's comes block by block (`head_backward`)
        (weight.sum() * 0).backward()

    def size(tensors: Any) -> float:
        return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None))

    masters = [master for _, master in getattr(optimiser, "pairs", ())]
    seen["weights"], seen["masters"] = size(weights), size(masters)
    seen["gradients"] = size(tensor.grad for tensor in (*weights, *masters))
    if precision == "bfloat16" and not wide:
        step = torch.optim.AdamW.step
        inside: list[float] = []

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            inside.append(size(master.grad for master in masters))
            return step(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", counted)
            optimiser.step()
        assert inside == [Trained(shape(model).parameters, 0, precision, wide_gradients=False).in_step]
    else:
        optimiser.step()
    state = optimiser.state.values()
    seen["moments"] = size(part[name] for part in state for name in ("exp_avg", "exp_avg_sq"))
    planned = Trained(shape(model).parameters, 0, precision, wide_gradients=wide)
    assert planned.parts == {name: size for name, size in seen.items() if size}


def test_an_adapter_is_float32_and_has_no_masters() -> None:
    from peft import LoraConfig, get_peft_model

    model = model_of("llama", "bfloat16")
    whole = shape(model).parameters
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trained} == {torch.float32}
    adapter = sum(weight.numel() for weight in trained)
    held = sum(weight.numel() * weight.element_size() for weight in adapted.parameters())
    assert Trained(whole, adapter, "bfloat16").parts == {
        "weights": held,
        "gradients": 4 * adapter,
        "moments": 8 * adapter,
    }


def test_sharding_divides_what_is_trained_and_gathers_two_layers_and_the_root() -> None:
    sizes = shape(model_of("llama", "bfloat16"))
    whole, part = (training_parts(sizes, shards) for shards in (1, 4))
    for name in ("gradients", "moments"):
        assert part[name] == whole[name] / 4
    assert part["weights"] == (whole["masters"]) / 4, "a shard's weights are its masters"
    assert "masters" not in part
    frozen = Trained(1000, 10, "bfloat16", shards=4).parts
    assert frozen["weights"] == 2 * 1000 / 4 + 4 * 10, "every device keeps the whole adapter"
    layer, root = sizes.layer_parameters, sizes.root_parameters
    assert part["gathered"] == 2 * (2 * layer + root) + 6 * (layer + root)
    assert gathered(sizes, "bfloat16", gradients=False) == 2 * (2 * layer + root)
    assert scoring_bytes(sizes, PACKED, "bfloat16", 4)["weights"] == 2 * sizes.parameters / 4


def training_parts(sizes: Shape, shards: int, checkpointing: bool = False) -> dict[str, float]:
    trained = Trained(sizes.parameters, 0, "bfloat16", shards=shards)
    return training_bytes(sizes, trained, PACKED, checkpointing=checkpointing, flash=True)


def test_the_larger_of_a_backward_pass_and_the_optimisers_step_counts() -> None:
    sizes = shape(model_of("llama", "bfloat16"))
    trained = Trained(sizes.parameters, 0, "bfloat16", wide_gradients=False)
    short = PackedPass.of([(4, (4,))])
    wide_vocabulary = training_bytes(sizes, trained, PACKED, checkpointing=False, flash=True)
    assert "activations" in wide_vocabulary
    large = Trained(sizes.parameters * 1000, 0, "bfloat16", wide_gradients=False)
    step = training_bytes(sizes, large, short, checkpointing=True, flash=True)
    assert step["step"] == 4 * large.parameters
    assert sum(step.values()) == 20 * large.parameters


def test_keys_and_values_are_those_of_the_cache_that_answers() -> None:
    model = model_of("llama", "float32").eval()
    ids = torch.zeros(3, 20, dtype=torch.long)
    with torch.no_grad():
        cache: Any = model(ids, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert answering_bytes(shape(model), ids.numel(), "float32")["cache"] == held


def test_a_checkpointed_pass_keeps_a_state_a_layer_and_one_whole_layer() -> None:
    kept = Activations(layer=100.0, checkpoint=10.0, root=1.0, layers=4, selective=30.0)
    assert (kept.kept(False), kept.kept(True), kept.at_most(True), kept.at_most(False)) == (401, 41, 141, 401)
    assert (kept.kept("selective"), kept.at_most("selective")) == (121, 191)


def test_a_pass_is_measured_as_it_is_laid_out() -> None:
    from alignment.models.packing import lay_out

    layout = lay_out(groups(), torch.device("cpu"))
    filled = layout.segments[-1]  # what rounds the pass up
    assert filled.stop == layout.tokens == PACKED.tokens
    segments = layout.segments[:-1]
    own = [segment.stop - segment.start for segment in segments]
    behind = [segment for segment in segments if segment.prompt_stop > segment.prompt_start]
    assert PACKED.reads == len(layout.reads)
    assert PACKED.keys == sum(segment.keys for segment in segments)
    assert PACKED.behind == sum(segment.keys for segment in behind)
    assert PACKED.pairs == sum(count * segment.keys for count, segment in zip(own, segments, strict=True))
    assert PACKED.masked == sum((segment.stop - segment.start) * segment.keys for segment in behind)
    assert PACKED.scaled_to(2 * int(PACKED.tokens)).keys == 2 * PACKED.keys


@pytest.mark.parametrize(("precision", "measured"), [("bfloat16", 0.68), ("float32", 1.13)])
def test_a_scoring_pass_takes_what_was_measured(precision: str, measured: float) -> None:
    """docs/benchmarks.md, Memory of a pass: resident memory beyond the weights, two layers of Qwen2.5-0.5B's shape."""
    from alignment.models.checkpoint import read_config
    from resources.home import PROJECT

    known = shape_of(read_config(PROJECT / "alignment_dags" / "planner" / "models" / "qwen2.5_0.5b.json"))
    assert known is not None
    packed = PackedPass.of([(118, (320, 320))]).scaled_to(16_384)
    working = scoring_bytes(known, packed, precision)["working"] / 2**30
    assert working == pytest.approx(measured, rel=0.15)
