from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.data.tokens import TokenSequence
from alignment.models.shape import shape_of
from alignment.models.size import Work, forward_operations, peak_flops, scoring_flops, training_operations
from tests.alignment.models.test_memory import OWN

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


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"])
def test_of_a_mixture_those_experts_count_that_a_token_goes_through(kind: str) -> None:
    """torch's own counter does not know grouped products, so each expert runs by itself here."""
    tokens, model = 40, model_of(kind, **OWN[kind])
    model.set_experts_implementation("eager")
    shape = shape_of(model.config.to_dict())
    assert shape is not None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, tokens, dtype=torch.long), logits_to_keep=tokens - 1)
    whole, causal = (4 * shape.query_width * LAYERS * seen for seen in (tokens**2, tokens * (tokens + 1) / 2))
    sequences = [TokenSequence((1,), (2,) * (tokens - 1))]
    assert scoring_flops(model, sequences) == pytest.approx(counter.get_total_flops() - whole + causal, rel=1e-12)
    found = forward_operations(shape, Work.of(1, (tokens - 1,))).useful
    assert found == pytest.approx(scoring_flops(model, sequences), rel=1e-12)


def test_nothing_is_claimed_for_experts_that_are_not_understood_or_an_unknown_device() -> None:
    of_many: Any = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_experts=4)))
    assert scoring_flops(of_many, [TokenSequence((1,), (2,))]) is None
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None


@pytest.mark.parametrize("kind", ["llama", "cohere", "cohere2", "gpt2"])
def test_operations_by_sizes_alone_are_those_by_the_model(kind: str) -> None:
    model = model_of(kind)
    shape = shape_of(model.config.to_dict())
    assert shape is not None
    sequences = [TokenSequence((1,) * 30, (2,) * own) for own in (12, 20)]
    work = Work.of(30, (12, 20))
    assert forward_operations(shape, work).useful == pytest.approx(scoring_flops(model, sequences), rel=1e-12)


def test_operations_of_training_are_those_that_torch_counts() -> None:
    """Full training, and the same with frozen weights whose inputs get a gradient. Attention is left out: eager
    attention does all of it, and causal attention half."""
    tokens = 24
    for frozen in (False, True):
        model = model_of()
        shape = shape_of(model.config.to_dict())
        assert shape is not None
        embedded = torch.randn(1, tokens, WIDTH, requires_grad=True)
        for weight in model.parameters():
            weight.requires_grad_(not frozen)
        with FlopCounterMode(display=False) as counter:
            model(inputs_embeds=embedded).logits.sum().backward()
        work = Work(tokens, tokens, 0.0)
        attention = 3 * 4 * WIDTH * LAYERS * tokens**2
        found = training_operations(shape, work, adapter=frozen, recomputed=False)
        assert found.useful == pytest.approx(counter.get_total_flops() - attention, rel=1e-12)
        again = training_operations(shape, work, adapter=frozen, recomputed=True)
        head = 2 * WIDTH * VOCABULARY * tokens
        assert found.done - found.useful == head, "the head's log-probabilities come before its gradient"
        assert again.done - again.useful == forward_operations(shape, work).useful
