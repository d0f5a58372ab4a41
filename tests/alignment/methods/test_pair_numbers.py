"""A weight and a target margin of each pair: the losses are the papers' formulas."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from alignment.methods import PairLogps, method_of
from alignment.recipe import Dpo
from tests.alignment.methods.test_dpo import sigmoid

NAMES = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected", "chosen_tokens", "rejected_tokens")


def rows(count: int = 40) -> list[dict[str, float]]:
    rng = random.Random(3)
    made = []
    for _ in range(count):
        logps = {name: -rng.uniform(1, 9) for name in NAMES[:4]} | {name: rng.randint(1, 6) for name in NAMES[4:]}
        made.append(logps | {"weight": rng.uniform(0, 3), "target_margin": rng.uniform(-2, 5)})
    return made


def logps_of(given: list[dict[str, float]], *more: str) -> PairLogps:
    return PairLogps(
        **{name: torch.tensor([row[name] for row in given], dtype=torch.float64) for name in (*NAMES, *more)}
    )


def reward_margin(row: dict[str, float], beta: float, per_token: bool = False) -> float:
    chosen, rejected = (
        (row[f"policy_{side}"] - row[f"ref_{side}"]) / (row[f"{side}_tokens"] if per_token else 1)
        for side in ("chosen", "rejected")
    )
    return beta * (chosen - rejected)


def rpo(row: dict[str, float], settings: Dpo) -> float:
    """Adler et al. 2024, section 3.3.2: D[a‖b] = σ(b) log(σ(b)/σ(a)) + (1−σ(b)) log((1−σ(b))/(1−σ(a)))
    of the reward margin a and the scaled difference b of what the data says."""
    a = reward_margin(row, settings.beta, settings.loss == "sigmoid_norm")
    b = settings.margin_scale * row["target_margin"]
    return sigmoid(b) * math.log(sigmoid(b) / sigmoid(a)) + (1 - sigmoid(b)) * math.log(
        (1 - sigmoid(b)) / (1 - sigmoid(a))
    )


@pytest.mark.parametrize(
    "settings",
    [
        Dpo(beta=0.3, target_margin="column"),
        Dpo(beta=0.1, target_margin="scores", margin_scale=0.5),
        Dpo(loss="sigmoid_norm", beta=2.0, target_margin="column"),
    ],
    ids=["margin", "scores", "per token"],
)
def test_a_target_margin_gives_the_reward_aware_loss_and_its_gradient(settings: Dpo) -> None:
    given, method = rows(), method_of(settings)
    logps = logps_of(given, "target_margin")
    logps.policy_chosen.requires_grad_()
    losses = method.loss(logps)
    assert losses.tolist() == pytest.approx([rpo(row, settings) for row in given], abs=1e-10)
    losses.sum().backward()
    assert logps.policy_chosen.grad is not None
    per_token = settings.loss == "sigmoid_norm"
    # dD/da = σ(a) − σ(b), and a grows by β with the chosen side's log-prob
    slopes = [
        settings.beta
        / (row["chosen_tokens"] if per_token else 1)
        * (
            sigmoid(reward_margin(row, settings.beta, per_token))
            - sigmoid(settings.margin_scale * row["target_margin"])
        )
        for row in given
    ]
    assert logps.policy_chosen.grad.tolist() == pytest.approx(slopes, abs=1e-12)
    start = replace(logps, policy_chosen=logps.ref_chosen, policy_rejected=logps.ref_rejected)
    untrained = [row | {"policy_chosen": row["ref_chosen"], "policy_rejected": row["ref_rejected"]} for row in given]
    assert method.first_loss(start) == pytest.approx(sum(rpo(row, settings) for row in untrained) / len(given))
    assert method.first_loss() is None


def test_the_loss_is_least_where_the_reward_margin_is_its_target_and_dpos_where_there_is_none() -> None:
    method = method_of(Dpo(beta=0.5, target_margin="column", margin_scale=2.0))
    given = [
        row
        | {
            "policy_chosen": row["ref_chosen"] + 2.0 * row["target_margin"] / 0.5,
            "policy_rejected": row["ref_rejected"],
        }
        for row in rows()
    ]
    logps = logps_of(given, "target_margin")
    logps.policy_chosen.requires_grad_()
    losses = method.loss(logps)
    losses.sum().backward()
    assert logps.policy_chosen.grad is not None
    assert losses.tolist() == pytest.approx([0.0] * len(given), abs=1e-12)
    assert logps.policy_chosen.grad.tolist() == pytest.approx([0.0] * len(given), abs=1e-12)
    plain = method_of(Dpo(beta=0.5))
    held_out = logps_of(rows())
    assert method.loss(held_out).tolist() == plain.loss(held_out).tolist()


@pytest.mark.parametrize(
    "given",
    [{"beta": 0.3}, {"beta": 0.3, "sft_weight": 0.2}, {"loss": "ipo"}, {"loss": "hinge"}, {"target_margin": "column"}],
    ids=str,
)
def test_a_weight_multiplies_all_that_a_pair_is_trained_on_and_is_not_normalised(given: dict[str, Any]) -> None:
    made = rows()
    logps = logps_of(made, "target_margin")
    if "target_margin" not in given:
        logps = replace(logps, target_margin=None)
    plain, weighted = method_of(Dpo(**given)), method_of(Dpo(**given, weighted=True))
    weight = torch.tensor([row["weight"] for row in made], dtype=torch.float64)
    losses = weighted.objective(replace(logps, weight=weight))
    assert losses.tolist() == pytest.approx((weight * plain.objective(logps)).tolist(), rel=1e-14)
    assert weighted.loss(replace(logps, weight=weight)).tolist() == plain.loss(logps).tolist()


def test_methods_without_these_settings_refuse_them_by_name() -> None:
    with pytest.raises(ValueError, match="weighted counts only with"):
        Dpo(loss="simpo", weighted=True)
    with pytest.raises(ValueError, match="target_margin counts only with loss: sigmoid or sigmoid_norm"):
        Dpo(loss="ipo", target_margin="scores")
    with pytest.raises(ValueError, match="margin_scale counts only with target_margin"):
        Dpo(margin_scale=2.0)
