"""KTO and LD-DPO: value and gradient are the papers' formulas, and TRL's on the same log-probs."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignment.methods import LabelledLogps, PairLogps, method_of
from alignment.recipe import Dpo

KTO = Dpo(loss="kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.7)
LD_DPO = Dpo(loss="ld_dpo", beta=0.2, ld_alpha=0.4)
STEP = 1e-6


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def kto_by_hand(rows: list[tuple[float, float, bool]], partners: list[tuple[float, float]]) -> list[float]:
    """Ethayarajh et al. 2024, eq. 7: λ_y − v(x, y) of (log π, log π_ref, desirable) and the partners' log-probs.

    r = log π / π_ref; z₀ = max(0, mean of the partners' r); v = λ_D σ(β(r − z₀)), or λ_U σ(β(z₀ − r)).
    """
    z0 = max(0.0, sum(policy - reference for policy, reference in partners) / len(partners))
    found = []
    for policy, reference, desirable in rows:
        over = policy - reference - z0
        weight = KTO.desirable_weight if desirable else KTO.undesirable_weight
        found.append(weight - weight * sigmoid(KTO.beta * (over if desirable else -over)))
    return found


def drawn(count: int, apart: float = 0.0) -> tuple[list[tuple[float, float, bool]], list[tuple[float, float]]]:
    rng = random.Random(count)
    rows = [(-rng.uniform(1, 9), -rng.uniform(1, 9), rng.random() < 0.5) for _ in range(count)]
    return rows, [(-rng.uniform(1, 9) + apart, -rng.uniform(1, 9)) for _ in range(count)]


def logps(rows: list[tuple[float, float, bool]]) -> LabelledLogps:
    policy, reference, labels = zip(*rows, strict=True)
    return LabelledLogps(
        torch.tensor(policy, dtype=torch.float64, requires_grad=True),
        torch.tensor(reference, dtype=torch.float64),
        torch.ones(len(rows), dtype=torch.float64),
        torch.tensor(labels),
    )


def z0_of(partners: list[tuple[float, float]]) -> Any:
    ratios = [policy - reference for policy, reference in partners]
    return method_of(KTO).prepare(torch.tensor(ratios, dtype=torch.float64))


@pytest.mark.parametrize("apart", [4.0, -4.0], ids=["partners likelier", "partners less likely: z₀ is 0"])
def test_ktos_loss_and_gradient_are_the_formula(apart: float) -> None:
    rows, partners = drawn(40, apart)
    constants = z0_of(partners)
    assert (constants > 1.0) == (apart > 0) and constants >= 0
    given = logps(rows)
    loss = method_of(KTO).loss(given, constants)
    assert loss.tolist() == pytest.approx(kto_by_hand(rows, partners), rel=1e-12)
    loss.sum().backward()
    assert given.policy_completion.grad is not None
    slopes = [
        (kto_by_hand([(policy + STEP, *rest)], partners)[0] - kto_by_hand([(policy - STEP, *rest)], partners)[0])
        / (2 * STEP)
        for policy, *rest in rows
    ]
    assert given.policy_completion.grad.tolist() == pytest.approx(slopes, abs=1e-8, rel=1e-6)


def test_ktos_loss_is_trls_when_trl_is_given_the_same_partners() -> None:
    """TRL takes z₀ from partners in its micro batch; here it gets ours."""
    from trl import KTOTrainer

    rows, partners = drawn(12, 3.0)
    labels = torch.tensor([desirable for *_, desirable in rows])
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x, gather=lambda x: x),
        calculate_KL=True,
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        loss_type="kto",
        beta=KTO.beta,
        desirable_weight=KTO.desirable_weight,
        undesirable_weight=KTO.undesirable_weight,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        _compute_kl_logps=lambda model, batch: torch.tensor([policy for policy, _ in partners], dtype=torch.float64),
    )
    policy = torch.tensor([[policy] for policy, *_ in rows], dtype=torch.float64)
    outputs = SimpleNamespace(
        log_probs=policy, entropy=policy * 0, mean_logits=policy * 0, is_top1=torch.zeros(12, 1, dtype=torch.bool)
    )
    inputs = {
        "input_ids": torch.ones(12, 2, dtype=torch.long),
        "attention_mask": torch.ones(12, 2, dtype=torch.long),
        "completion_mask": torch.tensor([[0, 1]] * 12),
        "label": labels,
        "ref_logps": torch.tensor([reference for _, reference, _ in rows], dtype=torch.float64),
        "ref_KL_logps": torch.tensor([reference for _, reference in partners], dtype=torch.float64),
    }
    theirs = KTOTrainer._compute_loss(stub, lambda **_: outputs, inputs, False)
    ours = method_of(KTO).objective(logps(rows), z0_of(partners)).mean()
    assert float(ours) == pytest.approx(float(theirs), rel=1e-9)
    assert stub._metrics["train"]["kl"] == [pytest.approx(z0_of(partners))]


def test_ktos_first_loss_is_half_of_the_weights() -> None:
    rows = [(-3.0, -3.0, True), (-4.0, -4.0, True), (-5.0, -5.0, False)]
    method = method_of(KTO)
    assert method.first_loss(logps(rows)) == pytest.approx((2 * 1.5 + 0.7) / 6)
    assert float(method.loss(logps(rows), 0.0).mean()) == method.first_loss(logps(rows))
    assert method.first_loss() is None, "it depends on the labels"
    assert method_of(Dpo(loss="kto")).first_loss() == 0.5


def test_a_row_is_right_on_its_labels_side_of_z0() -> None:
    rows = [(-1.0, -3.0, True), (-1.0, -3.0, False), (-2.5, -3.0, True), (-2.5, -3.0, False), (-2.0, -3.0, True)]
    assert method_of(KTO).right(logps(rows), 1.0).tolist() == [1.0, 0.0, 0.0, 1.0, 0.5]
    assert [each.tolist() for each in method_of(KTO).rewards(logps(rows))] == [
        pytest.approx([0.6, 0.15, 0.3]),
        pytest.approx([0.6, 0.15]),
    ]


def test_no_weight_at_all_and_another_methods_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="loss: kto needs a desirable_weight or an undesirable_weight above 0"):
        Dpo(loss="kto", desirable_weight=0, undesirable_weight=0)
    with pytest.raises(ValueError, match="desirable_weight counts only with loss: kto"):
        Dpo(desirable_weight=2.0)
    with pytest.raises(ValueError, match="ld_alpha counts only with loss: ld_dpo"):
        Dpo(loss="kto", ld_alpha=0.2)
    with pytest.raises(ValueError, match="sft_weight counts only with"):
        Dpo(loss="kto", sft_weight=0.2)


# LD-DPO: Liu et al. 2024, its modified likelihood in DPO's loss. A pair is given by its tokens' log-probs.

Tokens = list[list[float]]
"""The policy's of the chosen and of the rejected side, then the reference's."""


def ld_dpo_by_hand(pair: Tokens) -> float:
    """−log σ(β · margin), each log-prob Σ over the first min(|y_w|, |y_l|) tokens + α · Σ over the others."""
    shared = min(len(pair[0]), len(pair[1]))
    chosen, rejected, ref_chosen, ref_rejected = (
        sum(tokens[:shared]) + LD_DPO.ld_alpha * sum(tokens[shared:]) for tokens in pair
    )
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)
    return math.log(1 + math.exp(-LD_DPO.beta * margin))


def pairs_of(count: int) -> list[Tokens]:
    rng = random.Random(count)
    lengths = [(rng.randint(1, 6), rng.randint(1, 6)) for _ in range(count)]
    return [[[-rng.uniform(0.1, 4) for _ in range(length)] for length in (*each, *each)] for each in lengths]


def pair_logps(pair: Tokens, tokens: list[torch.Tensor]) -> PairLogps:
    shared = min(map(len, pair))
    wholes, firsts = ([part.sum()[None] for part in parts] for parts in (tokens, [each[:shared] for each in tokens]))
    counts = [torch.tensor([float(len(side))], dtype=torch.float64) for side in pair[:2]]
    return PairLogps(*wholes, *counts, *firsts)


def test_ld_dpos_loss_and_gradient_are_the_formula() -> None:
    for pair in pairs_of(30):
        tokens = [torch.tensor(side, dtype=torch.float64, requires_grad=place < 2) for place, side in enumerate(pair)]
        loss = method_of(LD_DPO).loss(pair_logps(pair, tokens))
        assert float(loss) == pytest.approx(ld_dpo_by_hand(pair), rel=1e-12)
        loss.sum().backward()
        for side in range(2):
            gradient = tokens[side].grad
            assert gradient is not None
            for place in range(len(pair[side])):
                moved = []
                for sign in (1, -1):
                    other = [list(each) for each in pair]
                    other[side][place] += sign * STEP
                    moved.append(ld_dpo_by_hand(other))
                assert float(gradient[place]) == pytest.approx((moved[0] - moved[1]) / (2 * STEP), abs=1e-8, rel=1e-5)


def test_ld_dpos_loss_is_trls_with_its_ld_alpha() -> None:
    from trl import DPOTrainer

    from tests.alignment.methods.test_dpo import Stub

    for pair in pairs_of(12):
        stub = Stub(Dpo(beta=LD_DPO.beta))
        stub.ld_alpha = LD_DPO.ld_alpha
        longest = max(map(len, pair))
        mask = torch.tensor([[0, *([1] * len(side)), *([0] * (longest - len(side)))] for side in pair[:2]])
        filled = [torch.tensor([*side, *([0.0] * (longest - len(side)))], dtype=torch.float64) for side in pair]
        shared = min(map(len, pair))
        reference = [sum(side[:shared]) + LD_DPO.ld_alpha * sum(side[shared:]) for side in pair[2:]]
        outputs = SimpleNamespace(
            log_probs=torch.stack(filled[:2]),
            entropy=torch.zeros(2, longest),
            mean_logits=torch.zeros(2, longest),
            is_top1=torch.zeros(2, longest, dtype=torch.bool),
        )
        inputs = {
            "input_ids": torch.ones_like(mask),
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask,
            "ref_chosen_logps": torch.tensor([reference[0]]),
            "ref_rejected_logps": torch.tensor([reference[1]]),
        }
        theirs = DPOTrainer._compute_loss(stub, lambda outputs=outputs, **_: outputs, inputs, False)
        tokens = [torch.tensor(side, dtype=torch.float64) for side in pair]
        assert float(method_of(LD_DPO).loss(pair_logps(pair, tokens))) == pytest.approx(float(theirs), abs=1e-6)


def test_with_alpha_1_it_is_dpo_and_with_sides_of_one_length_as_well() -> None:
    dpo, whole = method_of(Dpo(beta=LD_DPO.beta)), method_of(Dpo(loss="ld_dpo", beta=LD_DPO.beta, ld_alpha=1.0))
    for pair in pairs_of(12):
        rows = pair_logps(pair, [torch.tensor(side, dtype=torch.float64) for side in pair])
        assert float(whole.loss(rows)) == pytest.approx(float(dpo.loss(rows)), rel=1e-12)
        if len(pair[0]) == len(pair[1]):
            assert float(method_of(LD_DPO).loss(rows)) == pytest.approx(float(dpo.loss(rows)), rel=1e-12)
    assert method_of(LD_DPO).first_loss() == math.log(2)
