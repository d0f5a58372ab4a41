"""What is saved of a training."""

from __future__ import annotations

import pytest
import torch

from alignment.errors import BadInput
from alignment.recipe import Lora
from alignment.training.models import adapting, lora_config, require_finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_training_that_diverged_is_no_checkpoint(value: float) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    require_finite(model)
    with torch.no_grad():
        model[1].weight[0, 1] = value
    with pytest.raises(BadInput, match=r"diverged: 1\.weight .* lower the learning rate"):
        require_finite(model)


@pytest.mark.parametrize(
    ("lora", "field"),
    [
        (Lora(rank=2, dropout=0.1), "lora.dropout"),
        (Lora(rank=2, target_modules=["no_such_proj"]), "lora.target_modules"),
        (Lora(rank=2, target_modules=["w1", "w2"]), "lora.target_modules"),
    ],
    ids=["dropout", "no such layer", "half of what is one tensor"],
)
def test_adapters_that_a_mixture_of_experts_cannot_have_are_refused_in_one_line(lora: Lora, field: str) -> None:
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **sizes))
    with pytest.raises(BadInput, match=f"^field '{field}': ") as told, adapting(lora):
        get_peft_model(model, lora_config(lora))
    assert "\n" not in str(told.value)
