"""What a model takes in memory, told from its configuration, is what the model itself holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.models.checkpoint import read_config
from alignment.models.size import forward_bytes, parameter_counts, training_bytes
from alignment.recipe import Lora

SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_counts_are_those_of_the_model_and_of_its_adapter(tied: bool, targets: Any) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = SHAPE | {"tie_word_embeddings": tied}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    whole = sum(weight.numel() for weight in model.parameters())
    assert parameter_counts(config) == (whole, whole)
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM"))
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert parameter_counts(config, Lora(rank=8, target_modules=targets)) == (whole, trained)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("mistral_7b_v0.1", 7_241_732_096),
        ("llama_3_8b", 8_030_261_248),
        ("llama_3.1_8b", 8_030_261_248),
        ("qwen2.5_0.5b", 494_032_768),
    ],
)
def test_counts_of_published_models_are_the_published_ones(name: str, published: int) -> None:
    config = read_config(Path(__file__).parents[2] / "configs" / f"{name}.json")
    assert parameter_counts(config)[0] == published


def test_training_all_takes_the_optimisers_bytes_and_training_an_adapter_little_more_than_the_weights() -> None:
    assert training_bytes(1000, 1000, "bfloat16") == training_bytes(1000, 1000, "float32") == 16_000
    assert training_bytes(1000, 10, "bfloat16") == 2_160
    assert forward_bytes(1000, "float32") == 4_000


def test_a_configuration_of_no_known_model_is_refused() -> None:
    with pytest.raises(BadInput, match="no model can be made of this configuration"):
        parameter_counts({"model_type": "abacus"})
