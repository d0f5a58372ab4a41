"""What a model has, told from its configuration alone, is what the model itself has."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.models.checkpoint import read_config
from alignment.models.shape import FAMILIES, not_planned, shape_of
from alignment.models.size import accelerator_of, counts_of_empty_model, parameter_counts
from alignment.recipe import Lora
from resources.home import PROJECT

CONFIGS = PROJECT / "alignment_dags" / "planner" / "models"
SHAPE: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "n_inner": 48},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}
ADAPTERS = {
    "all": Lora(rank=8),
    "some": Lora(rank=3, target_modules=["q_proj", "v_proj"]),
    "head": Lora(rank=3, target_modules=["q_proj", "lm_head"]),
}


@pytest.mark.parametrize("kind", sorted(FAMILIES))
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"head_dim": 16, "attention_bias": True, "mlp_bias": True},
        {"use_qk_norm": True, "qkv_bias": False},
    ],
    ids=str,
)
def test_counts_from_the_configuration_are_those_of_the_model_itself(kind: str, settings: dict[str, Any]) -> None:
    from transformers import AutoConfig

    config = SHAPE | {"model_type": kind} | settings | OWN.get(kind, {})
    fields = vars(AutoConfig.for_model(kind))
    config = {name: value for name, value in config.items() if name in fields or name not in settings}
    shape = shape_of(config)
    assert shape is not None
    assert shape.parameters == counts_of_empty_model(json.dumps(config), None)[0]
    for lora in ADAPTERS.values():
        assert counted(lambda: parameter_counts(config, lora)) == counted(  # noqa: B023
            lambda: counts_of_empty_model(json.dumps(config), lora.model_dump_json())  # noqa: B023
        )


def counted(count: Callable[[], tuple[int, int]]) -> Any:
    """The counts, or what is said of targets that the model does not have."""
    try:
        return count()
    except BadInput as error:
        return str(error)


def test_targets_that_a_model_does_not_have_are_named() -> None:
    config = SHAPE | {"model_type": "phi3"}
    with pytest.raises(BadInput, match=r"^field 'lora.target_modules': Target modules .* not found"):
        parameter_counts(config, ADAPTERS["some"])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "qwen2_moe"])
def test_counts_of_an_adapter_are_those_of_peft(kind: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = SHAPE | {"model_type": kind} | OWN.get(kind, {})
    some = Lora(rank=3, target_modules=["c_attn", "c_proj"]) if kind == "gpt2" else ADAPTERS["some"]
    for lora in (ADAPTERS["all"], some):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        whole = sum(weight.numel() for weight in model.parameters())
        settings = LoraConfig(r=lora.rank, target_modules=lora.target_modules, task_type="CAUSAL_LM")
        adapted = get_peft_model(model, settings)
        trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
        assert parameter_counts(config, lora) == (whole, trained)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("mistral_7b_v0.1", 7_241_732_096),
        ("llama_3_8b", 8_030_261_248),
        ("llama_3.1_8b", 8_030_261_248),
        ("llama_3_70b", 70_553_706_496),
        ("llama_3.1_405b", 405_853_388_800),
        ("qwen2.5_0.5b", 494_032_768),
    ],
)
def test_counts_of_published_models_are_the_published_ones(name: str, published: int) -> None:
    assert parameter_counts(read_config(CONFIGS / f"{name}.json"))[0] == published


def test_a_model_of_another_family_or_with_sizes_left_to_defaults_is_counted_all_the_same() -> None:
    other = {"model_type": "gpt_neox", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1}
    other |= {"num_attention_heads": 2, "intermediate_size": 32, "pad_token_id": 0}
    assert shape_of(other) is None
    assert parameter_counts(other)[0] == 2 * 16 * 64 + 4 * 16**2 + 2 * 16 * 32 + (4 * 16 + 32 + 16) + 6 * 16
    without = {name: value for name, value in SHAPE.items() if name != "intermediate_size"} | {"model_type": "llama"}
    assert shape_of(without) is None
    assert parameter_counts(without)[0] > 0


NOT_PLANNED_HERE = {
    "gpt_oss": ({}, "its attention has sinks, with which prompts are not shared"),
    "deepseek_v3": ({}, "there are no formulas for deepseek_v3"),
    "llama": ({"intermediate_size": None}, "config.json leaves intermediate_size to a default"),
    "gpt2": ({"activation_function": "relu6"}, "what the activation relu6 keeps is not known"),
    "qwen3_moe": ({"decoder_sparse_step": 2}, "some of its layers have experts and some have none"),
    "qwen2_moe": ({"mlp_only_layers": [0]}, "some of its layers have experts and some have none"),
    "olmoe": ({"clip_qkv": 8.0}, "what clip_qkv keeps is not known"),
    "mixtral": ({"router_jitter_noise": 0.1}, "what router_jitter_noise keeps is not known"),
}


@pytest.mark.parametrize("kind", sorted(NOT_PLANNED_HERE))
def test_what_cannot_be_planned_is_named(kind: str) -> None:
    settings, why = NOT_PLANNED_HERE[kind]
    config = SHAPE | {"model_type": kind} | OWN.get(kind, {}) | settings
    assert shape_of(config) is None
    assert (not_planned(config) or "").startswith(why)
    whole = SHAPE | {"model_type": kind} | OWN.get(kind, {})
    assert (not_planned(whole) is None) == (kind in FAMILIES)


@pytest.mark.parametrize(
    ("config", "published", "active"),
    [
        # Jiang et al. 2024: 47B and 13B; Yang et al. 2025: 30.5B and 3.3B; Muennighoff et al. 2024: 6.9B and 1.3B
        (
            {
                "model_type": "mixtral",
                "vocab_size": 32000,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "num_local_experts": 8,
                "num_experts_per_tok": 2,
            },
            46.7e9,
            12.9e9,
        ),
        (
            {
                "model_type": "qwen3_moe",
                "vocab_size": 151936,
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "moe_intermediate_size": 768,
                "num_hidden_layers": 48,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
                "head_dim": 128,
                "num_experts": 128,
                "num_experts_per_tok": 8,
            },
            30.5e9,
            3.3e9,
        ),
        (
            {
                "model_type": "olmoe",
                "vocab_size": 50304,
                "hidden_size": 2048,
                "intermediate_size": 1024,
                "num_hidden_layers": 16,
                "num_attention_heads": 16,
                "num_experts": 64,
                "num_experts_per_tok": 8,
            },
            6.9e9,
            1.3e9,
        ),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_parameters_and_active_ones_of_published_mixtures_are_the_published_ones(
    config: dict[str, Any], published: float, active: float
) -> None:
    shape = shape_of(config)
    assert shape is not None
    assert shape.parameters == pytest.approx(published, rel=0.01)
    assert shape.layers * shape.token_matrices + 2 * shape.embedding == pytest.approx(active, rel=0.02)


def test_known_decoders_are_counted_without_torch_and_transformers() -> None:
    script = f"""
import json, sys
from alignment.models.size import parameter_counts
from alignment.recipe import Lora
assert parameter_counts(json.load(open({str(CONFIGS / "llama_3_70b.json")!r})), Lora())[0] == 70553706496
print(sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_configuration_of_no_known_model_is_refused() -> None:
    with pytest.raises(BadInput, match="no model can be made of this configuration"):
        parameter_counts({"model_type": "abacus"})


def test_accelerators_are_known_by_what_their_names_hold() -> None:
    known = accelerator_of("NVIDIA-H100-80GB-HBM3")
    assert known is not None
    assert (known.peak_flops, known.memory) == (989e12, 80e9)
    assert accelerator_of("NVIDIA A100-SXM4-80GB") == (312e12, 80e9, 2.039e12)
    assert accelerator_of("GeForce") is accelerator_of(None) is None
