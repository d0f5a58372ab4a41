"""The packed step's loss and gradient, against padded batches and full logits that know nothing of ours."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.data.tokens import Tokenization, TokenSequence
from alignment.errors import BadInput
from alignment.logprobs.scorer import logps
from alignment.methods import Method, method_of
from alignment.models import forward, rope
from alignment.models.attention import shared_prompts
from alignment.models.checkpoint import load_model, load_tokenizer
from alignment.models.packing import pack_rows
from alignment.models.runner import Runner
from alignment.recipe import Dpo, TokenPolicy
from alignment.training import packed_step
from alignment.training.pairs import PolicyPair
from alignment.training.trainer import MasterAdamW
from tests.alignment.training.conftest import write_tiny_model

VOCABULARY = 90
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("qwen3", GROUPED),
    "mistral, window": ("mistral", {**GROUPED, "sliding_window": 7}),
    "gemma 2": ("gemma2", {**GROUPED, "sliding_window": 9, "query_pre_attn_scalar": 8}),
    "gemma 3": ("gemma3_text", {**GROUPED, "sliding_window": 9, "query_pre_attn_scalar": 8}),
    "phi-3": ("phi3", {"num_key_value_heads": 2}),
    "gpt-neox": ("gpt_neox", {}),
    "olmo 2": ("olmo2", {"num_key_value_heads": 2}),
    "experts": ("qwen3_moe", {**GROUPED, **EXPERTS, "output_router_logits": True, "router_aux_loss_coef": 0.5}),
}


def model_of(family: str, dtype: torch.dtype, seed: int = 0) -> Any:
    kind, own = FAMILIES[family]
    config = AutoConfig.for_model(kind, **{**SMALL, **own})
    torch.manual_seed(seed)
    how = {"experts_implementation": "eager"} if family == "experts" else {}  # the grouped kernel takes no float64
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager", **how).eval()


def rows_of(seed: int, count: int, longest: int = 40) -> list[PolicyPair]:
    """Pairs whose sides mostly share their prompt; every fourth pair has sides that part one id earlier."""
    draw = random.Random(seed)

    def some(most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, VOCABULARY) for _ in range(draw.randint(1, most)))

    made = []
    for number in range(count):
        prompt = (0, *some(longest // 2))
        sides = [TokenSequence(prompt, (*some(longest // 2), 1)) for _ in range(2)]
        if number % 4 == 3:
            sides[1] = TokenSequence(prompt[:-1] or prompt, (prompt[-1], *sides[1].completion_ids))
        made.append(PolicyPair(f"row{number}", *sides, -draw.uniform(5, 60), -draw.uniform(5, 60), "p"))
    return made


@contextmanager
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Norms and softmaxes of a float64 model stay in float64, where Transformers casts them to float32."""
    to, softmax = torch.Tensor.to, torch.nn.functional.softmax

    def kept(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        asked = [*args, *kwargs.values()]
        return tensor if tensor.dtype == torch.float64 and torch.float32 in asked else to(tensor, *args, **kwargs)

    def whole(tensor: torch.Tensor, *args: Any, dtype: Any = None, **kwargs: Any) -> torch.Tensor:
        return softmax(tensor, *args, dtype=None if tensor.dtype == torch.float64 else dtype, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", kept)
        patch.setattr(torch.Tensor, "float", lambda tensor: kept(tensor, torch.float32))
        patch.setattr(torch.nn.functional, "softmax", whole)
        yield


def padded(model: Any, rows: list[PolicyPair], beta: float) -> tuple[float, dict[str, torch.Tensor]]:
    """DPO (Rafailov et al. 2023, eq. 7) over one padded batch with a mask: the mean loss, and every gradient."""
    sequences = [side for row in rows for side in (row.chosen, row.rejected)]
    longest = max(map(len, sequences))
    ids, mask = torch.zeros(len(sequences), longest, dtype=torch.long), torch.zeros(len(sequences), longest)
    for place, each in enumerate(sequences):
        ids[place, : len(each)] = torch.tensor(each.prompt_ids + each.completion_ids)
        mask[place, : len(each)] = 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    each = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    sums = [each[place, len(row.prompt_ids) - 1 : len(row) - 1].sum() for place, row in enumerate(sequences)]
    loss = torch.zeros((), dtype=logits.dtype)
    for place, row in enumerate(rows):
        margin = (sums[2 * place] - row.ref_chosen_logp) - (sums[2 * place + 1] - row.ref_rejected_logp)
        loss = loss - torch.nn.functional.logsigmoid(beta * margin) / len(rows)
    model.zero_grad()
    loss.backward()
    return float(loss), gradients(model)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def packed(
    model: Any, rows: list[PolicyPair], method: Method, tokens: int = 2048
) -> tuple[packed_step.StepNumbers, dict[str, torch.Tensor]]:
    model.zero_grad()
    numbers = packed_step.backward(Runner.of(model, rows[0].chosen), method, rows, len(rows), tokens, ())
    return numbers, gradients(model)


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """‖g − g′‖ / ‖g′‖ over all weights."""
    assert found.keys() == expected.keys()
    squares = [float((found[name].double() - expected[name].double()).square().sum()) for name in expected]
    return math.sqrt(sum(squares) / sum(float(each.double().square().sum()) for each in expected.values()))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_padded_batches(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of(Dpo(beta=0.1))
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model, rows = model_of(family, dtype), rows_of(1, 9)
        with exact(monkeypatch) if dtype == torch.float64 else nullcontext():
            expected_loss, expected = padded(model, rows, 0.1)
            logps(model, [rows[0].chosen, rows[0].rejected], 2048)
            assert Runner.of(model, rows[0].chosen).shared, "this family is packed"
            for tokens in (2048, 130):
                numbers, found = packed(model, rows, method, tokens)
                assert numbers.loss / len(rows) == pytest.approx(expected_loss, rel=tolerance)
                assert apart(found, expected) < tolerance
        assert numbers.rows == 9 and numbers.forwarded < numbers.tokens


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 120), st.integers(60, 400))
def test_lengths_and_passes_change_no_gradient(seed: int, count: int, longest: int, tokens: int) -> None:
    model, rows = model_of("llama", torch.float64, seed % 3), rows_of(seed, count, longest)
    with exact(pytest.MonkeyPatch()):  # the gradient of a pair whose margin is large is as wrong as e to that margin
        _, expected = padded(model, rows, 0.3)
        numbers, found = packed(model, rows, method_of(Dpo(beta=0.3)), tokens)
    assert apart(found, expected) < 1e-12
    assert numbers.tokens == sum(len(row.chosen) + len(row.rejected) for row in rows)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30)), max_size=40), st.integers(1, 90))
def test_every_row_is_in_one_pass_and_no_pass_of_several_is_over_the_budget(
    lengths: list[tuple[int, int, int]], budget: int
) -> None:
    rows = [[TokenSequence((2,) * p, (3,) * c), TokenSequence((2,) * p, (4,) * r)] for p, c, r in lengths]
    passes = pack_rows(rows, budget)
    assert sorted(index for each in passes for index in each) == list(range(len(rows)))
    for each in passes:
        tokens = sum(lengths[index][0] + lengths[index][1] + lengths[index][2] - 2 for index in each)
        assert tokens <= budget or len(each) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma 3", "experts"])
def test_the_first_log_probs_are_the_cached_ones_bit_by_bit(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scorer's under inference mode, in its order and company; the step's with gradients, in its own."""
    model, rows = model_of(family, dtype), rows_of(3, 24)
    sequences = [side for row in rows for side in (row.chosen, row.rejected)]
    cached = logps(model, [sequences[place] for place in random.Random(1).sample(range(48), 48)], 700)
    by_ids = dict(zip([sequences[place] for place in random.Random(1).sample(range(48), 48)], cached, strict=True))
    seen: dict[TokenSequence, float] = {}
    sums = packed_step.row_sums

    def watched(each: torch.Tensor, of: Any) -> torch.Tensor:
        found = sums(each, of)
        seen.update(zip(of, found.tolist(), strict=True))
        return found

    monkeypatch.setattr(packed_step, "row_sums", watched)
    with shared_prompts(model):
        packed(model, rows, method_of(Dpo()), 300)
    assert seen == by_ids


def test_gradients_of_bfloat16_weights_are_summed_in_float32() -> None:
    """Over 40 passes a bfloat16 sum would lose about a hundredth."""
    model, rows = model_of("qwen2", torch.bfloat16), rows_of(4, 40)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = MasterAdamW([{"params": weights, "weight_decay": 0.0}], lr=1e-3)
    optimizer.accumulate_in_float32()
    runner, method = Runner.of(model, rows[0].chosen), method_of(Dpo())
    total = {id(master): torch.zeros_like(master, dtype=torch.float64) for _, master in optimizer.pairs}
    for row in rows:
        packed_step.backward(runner, method, [row], 40, 2048, ())
        for _, master in optimizer.pairs:
            assert master.grad is not None
            total[id(master)] += master.grad
            master.grad = None
    for row in rows:
        packed_step.backward(runner, method, [row], 40, 2048, ())
    for weight, master in optimizer.pairs:
        assert weight.grad is None and master.grad is not None and master.grad.dtype == torch.float32
        exactly = total[id(master)]
        assert float((master.grad - exactly).norm()) <= 1e-5 * float(exactly.norm())


def test_a_weight_that_no_rank_has_a_gradient_of_keeps_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW moves a weight whose gradient is zero, by its momentum and its decay; a single process leaves it alone."""
    reached, elsewhere, unreached = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    reached.grad = torch.ones(2)
    others = iter([torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 3.0, 3.0])])  # what the other rank brings
    monkeypatch.setattr(packed_step, "_has_ranks", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda ours: ours.add_(next(others)))
    packed_step.sum_over_ranks([reached, elsewhere, unreached])
    assert [None if weight.grad is None else weight.grad.tolist() for weight in (reached, elsewhere, unreached)] == [
        [2.0, 2.0],
        [3.0, 3.0],
        None,
    ]


def test_a_step_that_runs_out_of_memory_is_done_again_in_smaller_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = model_of("llama", torch.float32), rows_of(5, 12)
    method, runner = method_of(Dpo()), Runner.of(model, rows[0].chosen)
    _, expected = packed(model, rows, method, 400)
    states, calls = Runner.states, [0]

    def scarce(self: Runner, groups: Any, fill: int = 0) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 2:  # the first pass has left its gradients
            raise torch.OutOfMemoryError
        return states(self, groups, fill)

    monkeypatch.setattr(Runner, "states", scarce)
    model.zero_grad()
    packed_step.backward(runner, method, rows, len(rows), 400, model.parameters())
    assert runner.most == 200
    assert apart(gradients(model), expected) < 1e-5
    monkeypatch.setattr(Runner, "states", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError))
    with pytest.raises(torch.OutOfMemoryError):
        packed_step.backward(runner, method, rows[:1], 1, 400, ())


def test_a_sharded_step_that_runs_out_of_memory_is_one_line_that_names_a_smaller_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not done again here: the other ranks wait in the middle of the pass."""
    model, rows = model_of("llama", torch.float32), rows_of(5, 12)
    runner = Runner.of(model, rows[0].chosen)
    runner.sharding = SimpleNamespace(missing=lambda passes: 0, dtype=torch.float32)  # type: ignore[assignment]
    monkeypatch.setattr(Runner, "states", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError))
    smaller = r"^field 'reference.batch_tokens': a pass of 400 tokens does not fit into memory: say 200$"
    with pytest.raises(BadInput, match=smaller):
        packed_step.backward(runner, method_of(Dpo()), rows, len(rows), 400, model.parameters())


def descended(
    folder: Path, rows: list[PolicyPair], dtype: torch.dtype, rate: float, ranks: int, nudge: float = 0.0
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The weights before and after 20 steps of 8 rows by SGD with the trainer's schedule and clipping, each step's
    gradient the sum of those of the ranks' shares. `nudge` moves the start at random."""
    model, method = load_model(folder, "float32").to(dtype), method_of(Dpo(beta=0.1))
    runner, weights = Runner.of(model, rows[0].chosen), list(model.parameters())
    logps(model, [side for row in rows for side in (row.chosen, row.rejected)], 2048)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in weights:
            weight.add_(nudge * torch.randn(weight.shape, generator=draw, dtype=dtype))
    start = [weight.detach().clone() for weight in weights]
    for number in range(20):
        step = [rows[(8 * number + place) % len(rows)] for place in range(8)]
        total = [torch.zeros_like(weight) for weight in weights]
        for rank in range(ranks):
            model.zero_grad()
            share = [step[place] for place in packed_step.share_of(method, step, rank, ranks)]
            packed_step.backward(runner, method, share, len(step), 2048, ())
            for each, weight in zip(total, weights, strict=True):
                each.add_(weight.grad)
        norm = math.sqrt(sum(float(each.double().square().sum()) for each in total))
        now = rate * min(1.0, number / 2) * (1 + math.cos(math.pi * max(0, number - 2) / 18)) / 2
        with torch.no_grad():
            for each, weight in zip(total, weights, strict=True):
                weight.sub_(now * min(1.0, 1 / norm) * each)
    return start, [weight.detach() for weight in weights]


def distance(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return math.sqrt(sum(float((one.double() - other.double()).square().sum()) for one, other in pairs))


@pytest.mark.parametrize(("rate", "rounded", "grows"), [(1e-4, 1e-4, 1.1), (0.05, 5e-5, 1.1), (0.5, 1e-3, 1e3)])
def test_the_steps_of_two_ranks_differ_from_those_of_one_by_rounding_alone(
    rate: float, rounded: float, grows: float, lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """‖w₂ − w₁‖ / ‖w₁ − w₀‖ after 20 steps, which is measured of two processes in `test_sharding`.

    In float64 it is at most 2e-12 at every rate: two ranks take the same rows with the same weights, and sum their
    gradients in another order. In float32 two things decide how much becomes of that order.

    - Against small steps the rounding of weights is large. A weight of 0.3 is known to 3e-8, and a step of 1e-4 over
      20,000 weights moves each by some 7e-7; where two gradients part in the seventh digit, some of the sums
      round up here and down there. So the ratio is 1.6e-5 at 1e-4, and 5e-6 at 0.05, where steps are larger.
    - Large steps make more of a difference. A nudge to the start grows 103 times in 20 steps at 0.5, and not at all
      at 0.05 and 1e-4. So the ratio is 8e-5 at 0.5 here, and 3e-4 of two processes with halves of each weight.

    Between the two, at 0.05, rounding leaves 1e-5 of what was learned.
    """
    folder = write_tiny_model(tmp_path / "model", kind="qwen2")
    tokens, reference = Tokenization(load_tokenizer(folder), TokenPolicy(max_length=64)), load_model(folder, "float32")
    sides = [tokens.pair(row) for row in lab.rows(36)]
    cached = logps(reference, [side for pair in sides for side in pair], 2048)
    rows = [
        PolicyPair(f"row{place}", *pair, cached[2 * place], cached[2 * place + 1], "p")
        for place, pair in enumerate(sides)
    ]
    start, one = descended(folder, rows, torch.float32, rate, 1)
    assert distance(descended(folder, rows, torch.float32, rate, 2)[1], one) <= rounded * distance(one, start)
    with exact(monkeypatch):
        start, one = descended(folder, rows, torch.float64, rate, 1)
        assert distance(descended(folder, rows, torch.float64, rate, 2)[1], one) <= 1e-10 * distance(one, start)
        nudged, end = descended(folder, rows, torch.float64, rate, 1, nudge=1e-9)
    growth = distance(end, one) / distance(nudged, start)
    assert growth <= grows and (growth > 10) == (rate == 0.5)


def test_no_more_than_a_block_of_logits_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = model_of("llama", torch.float32), rows_of(6, 12)
    method = method_of(Dpo(sft_weight=0.2))
    _, expected = packed(model, rows, method)
    monkeypatch.setattr(forward, "LOGITS_AT_ONCE", 32 * VOCABULARY)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, _inputs, out: seen.append(out.shape[0]))
    _, found = packed(model, rows, method)
    assert max(seen) == 32 and sum(seen) >= 2 * sum(len(row.chosen.completion_ids) for row in rows)
    assert apart(found, expected) < 1e-5


def test_the_sft_term_does_not_depend_on_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's is a mean over a micro batch's tokens; 53 % of the gradient hung on it."""
    model, rows = model_of("qwen3", torch.float64), rows_of(7, 10)
    method = method_of(Dpo(sft_weight=1.0))
    with exact(monkeypatch):
        (_, one), (_, other) = packed(model, rows, method, 2048), packed(model, rows, method, 60)
    assert apart(one, other) < 1e-10


def longrope() -> Any:
    """A Phi-3 whose sequences above 24 tokens rotate with other factors."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 1.5]}
    settings = {"rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": 24, **factors}
    own = {"num_key_value_heads": 2, "rope_parameters": settings, "original_max_position_embeddings": 24}
    torch.manual_seed(1)
    config = AutoConfig.for_model("phi3", **{**SMALL, **own})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="eager").eval()


def test_longrope_values_are_each_sequences_own_whatever_its_company(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = longrope(), rows_of(8, 12, 50)
    sequences = [side for row in rows for side in (row.chosen, row.rejected)]
    sequences += [TokenSequence((0, *range(2, 2 + n)), (*range(5, 18), 1)) for n in (9, 10, 11)]  # 24 tokens and around
    border = rope.long_from(model)
    assert border == 24 and {len(each) - 1 > border for each in sequences} == {True, False}
    with exact(monkeypatch), torch.no_grad():
        alone = []
        for each in sequences:  # what is forwarded: nothing reads the last token
            ids = torch.tensor([each.prompt_ids + each.completion_ids])
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0].log_softmax(-1)
            picked = logits.gather(1, ids[0, 1:, None])[len(each.prompt_ids) - 1 :]
            alone.append(float(picked.sum()))
        together = logps(model, sequences, 2048)
    assert Runner.of(model, sequences[0]).shared
    assert together == pytest.approx(alone, rel=1e-9)
