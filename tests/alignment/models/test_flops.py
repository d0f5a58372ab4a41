from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.data.tokens import TokenSequence
from alignment.models.size import peak_flops, scoring_flops

WIDTH, LAYERS, VOCABULARY = 64, 3, 500


def model_of(kind: str = "llama", **settings: Any) -> Any:
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=160,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        **settings,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_those_that_torch_counts_with_causal_attention_counted_by_half(tied: bool) -> None:
    model, tokens = model_of(tie_word_embeddings=tied), 40
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, tokens, dtype=torch.long), logits_to_keep=tokens - 1)
    whole, causal = (4 * WIDTH * LAYERS * seen for seen in (tokens**2, tokens * (tokens + 1) / 2))
    found = scoring_flops(model, [TokenSequence((1,), (2,) * (tokens - 1))])
    assert found == pytest.approx(counter.get_total_flops() - whole + causal, rel=1e-12)


def test_a_prompt_counts_once_however_many_completions_it_has() -> None:
    model = model_of()
    one, other = TokenSequence((1,) * 50, (2,) * 10), TokenSequence((1,) * 50, (3,) * 10)
    alone = scoring_flops(model, [one])
    both = scoring_flops(model, [one, other])
    assert alone is not None
    assert both is not None
    assert 1.2 * alone < both < 1.6 * alone


def test_nothing_is_claimed_for_a_mixture_of_experts_or_an_unknown_device() -> None:
    assert scoring_flops(model_of("mixtral", num_local_experts=4), [TokenSequence((1,), (2,))]) is None
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None
