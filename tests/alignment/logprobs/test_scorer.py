from __future__ import annotations

import functools
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignment.data.tokens import TokenSequence
from alignment.errors import BadInput
from alignment.logprobs.scorer import score
from alignment.models import forward as completion
from alignment.models.checkpoint import load_model

Make = Callable[..., Path]
FAMILIES = ("llama", "llama_tied", "qwen2", "gemma2", "granite", "cohere", "gpt2")
NORMS = 1e-6
"""Relative: most norms are taken in float32 even in a float64 model."""
HEADS = {"gemma2": "soft-capped", "granite": "divided", "cohere": "multiplied"}


def drawn(count: int = 17, longest: int = 120, seed: int = 0) -> list[TokenSequence]:
    """Random sequences; among them a one-token completion, a one-token prompt and one of the longest length."""
    draw = random.Random(seed)

    def some(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(258) for _ in range(length))

    fixed = [TokenSequence(some(9), some(1)), TokenSequence(some(1), some(9)), TokenSequence(some(60), some(68))]
    return fixed + [
        TokenSequence(some(draw.randint(1, longest // 2)), some(draw.randint(1, longest // 2)))
        for _ in range(count - len(fixed))
    ]


def alone(folder: Path, sequences: list[TokenSequence]) -> list[float]:
    """One row at a time, full logits, everything in float64."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    sums = []
    for sequence in sequences:
        ids = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
        with torch.no_grad():
            each = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        sums.append(float(each[len(sequence.prompt_ids) - 1 :].sum()))
    return sums


def scored(model: Any, sequences: list[TokenSequence], batch_tokens: int = 300) -> list[float]:
    found = {entry.index: entry.logp for done in score(model, sequences, batch_tokens) for entry in done.scored}
    assert sorted(found) == list(range(len(sequences)))
    return [found[index] for index in range(len(sequences))]


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_values_are_those_of_one_row_at_a_time_in_float64(make_model: Make, family: str) -> None:
    folder, sequences = make_model(family), drawn()
    assert scored(load_model(folder, "float64"), sequences) == pytest.approx(alone(folder, sequences), rel=NORMS)
    assert scored(load_model(folder, "float32"), sequences) == pytest.approx(alone(folder, sequences), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_found_and_named(make_model: Make, family: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        scored(load_model(make_model(family), "float32"), drawn())
    assert f"logits: {HEADS.get(family, 'plain')} head" in caplog.text


def test_a_head_that_nothing_describes_goes_through_the_models_own_forward(
    make_model: Make, caplog: pytest.LogCaptureFixture
) -> None:
    folder, sequences = make_model("granite"), drawn()
    model = load_model(folder, "float64")
    model.config.logits_scaling = 1.0
    forward = model.forward

    @functools.wraps(forward)
    def scaled(*args: Any, **kwargs: Any) -> Any:
        model.config.logits_scaling = 7.0
        try:
            return forward(*args, **kwargs)
        finally:
            model.config.logits_scaling = 1.0

    model.forward = scaled
    with caplog.at_level(logging.INFO):
        assert scored(model, sequences) == pytest.approx(alone(folder, sequences), rel=NORMS)
    assert "the model's own forward pass" in caplog.text


@pytest.mark.parametrize("batch_tokens", [1, 130, 500, 100_000])
def test_batch_size_and_order_change_no_value(make_model: Make, batch_tokens: int) -> None:
    model, sequences = load_model(make_model("llama"), "float32"), drawn()
    values = scored(model, sequences)
    order = random.Random(1).sample(range(len(sequences)), len(sequences))
    shuffled = scored(model, [sequences[index] for index in order], batch_tokens)
    assert shuffled == pytest.approx([values[index] for index in order], rel=1e-6)


def test_logits_are_made_in_blocks_at_completion_positions_only(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sequences = load_model(make_model("llama"), "float64"), drawn()
    whole = scored(model, sequences, 100_000)  # the model is known from here on, and not probed again
    monkeypatch.setattr(completion, "LOGITS_AT_ONCE", 258 * 33)
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _m, inputs, _o: rows.append(inputs[0].shape[-2]))
    assert scored(model, sequences, 100_000) == whole
    counted = sum(len(s.completion_ids) for s in sequences)
    assert max(rows) == 32
    assert counted <= sum(rows) < counted + 16


def test_every_prompt_goes_through_the_model_once(make_model: Make) -> None:
    model, draw = load_model(make_model("llama"), "float32"), random.Random(0)
    prompts = [tuple(draw.randrange(258) for _ in range(20 + n)) for n in range(8)]
    sequences = [TokenSequence(prompt, (n, n + 1, n + 2)) for prompt in prompts for n in range(5)]
    scored(model, sequences)  # the model is known from here on, and not probed again
    passes: list[int] = []
    model.get_decoder().register_forward_pre_hook(
        lambda _m, _a, kwargs: passes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    scored(model, sequences)
    needed = sum(map(len, prompts)) + sum(len(s.completion_ids) - 1 for s in sequences)
    assert needed <= sum(passes) < needed + 16 * len(passes)


def test_running_out_of_memory_halves_the_budget_and_goes_on(
    make_model: Make, caplog: pytest.LogCaptureFixture
) -> None:
    model, sequences = load_model(make_model("llama"), "float32"), drawn()
    values = scored(model, sequences)
    tried: list[int] = []

    def small_device(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        tried.append(kwargs["input_ids"].numel())
        if tried[-1] > 256:
            raise torch.OutOfMemoryError("full")

    model.get_decoder().register_forward_pre_hook(small_device, with_kwargs=True)
    assert scored(model, sequences, 1024) == pytest.approx(values, rel=1e-6)
    assert max(tried) > 512
    assert "out of memory" in caplog.text


def test_a_single_sequence_that_does_not_fit_fails_with_the_devices_error(make_model: Make) -> None:
    model = load_model(make_model("llama"), "float32")

    def full(_module: Any, _args: Any) -> None:
        raise torch.OutOfMemoryError("full")

    model.get_decoder().register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        scored(model, drawn())


def test_ids_that_the_model_has_no_embedding_for_are_bad_input(make_model: Make) -> None:
    with pytest.raises(BadInput, match="id 258"):
        scored(load_model(make_model("llama"), "float32"), [TokenSequence((0,), (258,))])


def test_nothing_to_score_is_nothing_done(make_model: Make) -> None:
    assert scored(load_model(make_model("llama"), "float32"), []) == []
