"""What a model has, told from its configuration alone, is what the model itself has."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.models.checkpoint import read_config
from alignment.models.shape import FAMILIES, shape_of
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
    ],
    ids=str,
)
def test_counts_from_the_configuration_are_those_of_the_model_itself(kind: str, settings: dict[str, Any]) -> None:
    from transformers import AutoConfig

    config = SHAPE | {"model_type": kind} | settings
    fields = vars(AutoConfig.for_model(kind))
    config = {name: value for name, value in config.items() if name in fields or name not in settings}
    shape = shape_of(config)
    assert shape is not None
    assert shape.parameters == counts_of_empty_model(json.dumps(config), None)[0]
    for lora in ADAPTERS.values():
        assert parameter_counts(config, lora) == counts_of_empty_model(json.dumps(config), lora.model_dump_json())


def test_counts_of_an_adapter_are_those_of_peft() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = SHAPE | {"model_type": "llama"}
    for lora in (ADAPTERS["all"], ADAPTERS["some"]):
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
    other = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 64, "n_positions": 32}
    assert shape_of(other) is None
    assert parameter_counts(other)[0] == 16 * (64 + 32) + 12 * 16**2 + 13 * 16 + 2 * 16
    without = {name: value for name, value in SHAPE.items() if name != "intermediate_size"} | {"model_type": "llama"}
    assert shape_of(without) is None
    assert parameter_counts(without)[0] > 0


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
