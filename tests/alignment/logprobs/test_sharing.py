"""Prompts shared between completions: equal to one row at a time, and the same bits in any company."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.data.tokens import TokenSequence
from alignment.logprobs.scorer import score
from alignment.models import attention
from alignment.models.checkpoint import load_model
from alignment.models.runner import Runner

LONGEST = 128
VOCABULARY = 258


def random_model(seed: int) -> Any:
    """A RoPE model of a family, head grouping and head tying drawn from the seed, in float64."""
    draw = random.Random(seed)
    heads = draw.choice((2, 4, 6))
    config = AutoConfig.for_model(
        draw.choice(("llama", "qwen2", "qwen3", "olmo2", "mistral")),
        vocab_size=VOCABULARY,
        hidden_size=heads * 16,
        head_dim=16,
        intermediate_size=draw.choice((48, 96)),
        num_hidden_layers=draw.choice((1, 2, 3)),
        num_attention_heads=heads,
        num_key_value_heads=draw.choice([n for n in (1, 2, heads) if heads % n == 0]),
        max_position_embeddings=LONGEST,
        initializer_range=0.2,
        tie_word_embeddings=draw.random() < 0.5,
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": draw.choice((100.0, 10_000.0))},
    )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="sdpa").eval()


def preferences(seed: int, *, bos: bool) -> list[TokenSequence]:
    """Pairs, one prompt with 64 completions, a prompt of one token, one-token completions, one at the limit."""
    draw = random.Random(seed)

    def some(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, VOCABULARY) for _ in range(length))

    def prompt(length: int) -> tuple[int, ...]:
        return (0, *some(length - 1)) if bos else some(length)

    many, one, limit = prompt(20), prompt(1), prompt(60)
    rows = [TokenSequence(many, some(draw.randint(1, 30))) for _ in range(64)]
    rows += [TokenSequence(one, some(1)), TokenSequence(one, some(40))]
    rows += [TokenSequence(limit, some(1)), TokenSequence(limit, some(LONGEST - len(limit)))]
    for _ in range(8):
        shared = prompt(draw.randint(1, 60))
        rows += [TokenSequence(shared, some(draw.randint(1, 60))) for _ in range(2)]
    draw.shuffle(rows)
    return rows


def alone(model: Any, rows: list[TokenSequence]) -> list[float]:
    """One row at a time through the model's own eager forward, full logits, float64."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    sums = []
    for row in rows:
        ids = torch.tensor([row.prompt_ids + row.completion_ids])
        with torch.no_grad():
            each = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        sums.append(float(each[len(row.prompt_ids) - 1 :].sum()))
    model.set_attn_implementation(before)
    return sums


def scored(model: Any, rows: list[TokenSequence], budget: int = 700) -> list[float]:
    found = {entry.index: entry.logp for part in score(model, rows, budget) for entry in part.scored}
    assert sorted(found) == list(range(len(rows)))
    return [found[index] for index in range(len(rows))]


@pytest.mark.parametrize("seed", range(12))
def test_shared_prompts_give_the_values_of_one_row_at_a_time(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    model, rows = random_model(seed), preferences(seed, bos=seed % 2 == 0)
    with caplog.at_level(logging.INFO):
        assert scored(model, rows) == pytest.approx(alone(model, rows), rel=1e-6)
    assert "prompts are shared" in caplog.text


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("seed", range(3))
def test_order_company_and_budget_change_no_bit(seed: int, precision: str) -> None:
    model, rows = random_model(seed).to(getattr(torch, precision)), preferences(seed, bos=True)
    values = scored(model, rows)
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    assert scored(model, [rows[index] for index in order], 1000) == [values[index] for index in order]
    half = order[: len(order) // 2]
    assert scored(model, [rows[index] for index in half], 150) == [values[index] for index in half]
    assert [scored(model, [row])[0] for row in rows[:10]] == values[:10]


def windowed_model(window: int, layers: int = 2) -> Any:
    """A Mistral whose tokens see the last `window` only, in float64."""
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": window}
    config = AutoConfig.for_model("mistral", vocab_size=VOCABULARY, initializer_range=0.2, **small, **heads)
    torch.manual_seed(window)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="sdpa").eval()


@pytest.mark.parametrize("window", [1, 5, 16, 40])
def test_a_sliding_window_is_shared_and_reaches_back_into_the_prompt(
    window: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, rows = windowed_model(window), preferences(window, bos=True)
    with caplog.at_level(logging.INFO):
        found = scored(model, rows)
    assert found == pytest.approx(alone(model, rows), rel=1e-6)
    assert "prompts are shared" in caplog.text
    assert found != pytest.approx(alone(windowed_model(window, 1), rows), rel=1e-3)


def test_sharing_is_shown_again_for_sequences_longer_than_any_so_far(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that attends in some way of its own beyond a length is found out when that length comes."""
    model, rows = random_model(4), preferences(4, bos=True)
    short = [row for row in rows if len(row) < 40]
    with caplog.at_level(logging.INFO):
        assert scored(model, short) == pytest.approx(alone(model, short), rel=1e-6)
    assert "prompts are shared" in caplog.text
    attend = attention.attend

    def only_near(*states: Any, **kwargs: Any) -> Any:
        return attend(*states, **{**kwargs, "sliding_window": 40})

    monkeypatch.setattr(attention, "attend", only_near)
    with caplog.at_level(logging.INFO):
        assert scored(model, rows) == pytest.approx(alone(model, rows), rel=1e-6)
    assert "prompts are not shared" in caplog.text


def test_a_state_that_runs_over_the_sequence_goes_padded_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", vocab_size=VOCABULARY, **settings)).eval()
    with caplog.at_level(logging.INFO):
        scored(model, preferences(0, bos=True)[:20])
    assert "prompts are not shared on MambaForCausalLM" in caplog.text


def test_a_leak_too_small_for_rounding_to_show_is_found(caplog: pytest.LogCaptureFixture) -> None:
    """In bfloat16 a fiftieth of a log-prob passes for rounding: states that leak must show in bits."""
    torch.manual_seed(3)
    model = random_model(3).to(torch.bfloat16)
    decoder = model.get_decoder()
    first = decoder.layers[0]
    plain = first.forward

    def leaking(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out: torch.Tensor = plain(hidden, *args, **kwargs)
        return out + (0.02 * hidden.roll(10, 1) if hidden.shape[1] > 20 else 0)  # as a state that runs on does

    first.forward = leaking
    rows = [TokenSequence((0, 5, 6), tuple(range(9, 20))) for _ in range(6)]
    with caplog.at_level(logging.INFO):
        found = scored(model, rows)
    assert "what stands before a sequence in its pass changes its log-probs" in caplog.text
    assert len(set(found)) == 1


def test_capped_attention_is_shared(make_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = load_model(make_model("gemma2"), "float64")
    rows = [row for row in preferences(0, bos=True) if len(row) <= model.config.max_position_embeddings][:20]
    assert model.config.attn_logit_softcapping
    with caplog.at_level(logging.INFO):
        assert scored(model, rows) == pytest.approx(alone(model, rows), rel=1e-6)
    assert "prompts are shared" in caplog.text


@pytest.mark.parametrize("budget", [1, 700])
def test_a_model_that_keeps_its_own_attention_is_found_out_even_one_sequence_a_pass(
    budget: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, rows = random_model(1), preferences(1, bos=True)
    expected = alone(model, rows)
    monkeypatch.setattr(model, "set_attn_implementation", lambda _name: None)
    with caplog.at_level(logging.INFO):
        assert scored(model, rows, budget) == pytest.approx(expected, rel=1e-6)
    assert "prompts are not shared" in caplog.text


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_one_prompt_with_completions_of_one_token_settles_the_question(family: str) -> None:
    """Nothing stands before what is read of such a pass. Training relies on the answer for rows of every kind."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, initializer_range=0.3, **sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    short = [TokenSequence((5, 6, 7), (8,)), TokenSequence((5, 6, 7), (9,))]
    for rows in (short[:1], short):
        runner = Runner(model, rows[0])
        runner.sums([rows])
        assert runner.shared is (family == "llama")
    assert scored(model, short) == pytest.approx(alone(model, short), rel=1e-6)


def test_16_bits_are_packed_too(caplog: pytest.LogCaptureFixture) -> None:
    model, rows = random_model(0).to(torch.bfloat16), preferences(0, bos=True)
    with caplog.at_level(logging.INFO):
        scored(model, rows)
    assert "prompts are shared" in caplog.text
