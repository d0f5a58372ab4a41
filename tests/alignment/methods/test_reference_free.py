"""SimPO, CPO and ORPO are their papers' formulas in float64, and TRL's; none reads a reference."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignment.methods import Method, PairLogps, method_of
from alignment.methods.cpo import Cpo
from alignment.methods.orpo import Orpo
from alignment.methods.simpo import SimPo
from alignment.recipe import Dpo

EVERY: list[Method] = [SimPo(beta=2.5, gamma_ratio=0.3), Cpo(beta=0.2, sft_weight=0.7), Orpo(odds_weight=0.25)]
NAN = float("nan")


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def by_hand(method: Method, chosen: float, rejected: float, chosen_tokens: float, rejected_tokens: float) -> float:
    """Each objective as its paper writes it, in Python's floats."""
    means = chosen / chosen_tokens, rejected / rejected_tokens
    match method:
        case SimPo():  # Meng et al. 2024, eq. 6: γ is the target margin
            gamma = method.gamma_ratio * method.beta
            return -log_sigmoid(method.beta * means[0] - method.beta * means[1] - gamma)
        case Cpo():  # Xu et al. 2024, eq. 3, and the likelihood of the chosen side, a mean over its tokens as in TRL
            return -log_sigmoid(method.beta * chosen - method.beta * rejected) - method.sft_weight * means[0]
        case Orpo():  # Hong et al. 2024, eq. 4 to 7
            odds = [math.exp(mean) / (1 - math.exp(mean)) for mean in means]
            return -means[0] - method.odds_weight * log_sigmoid(math.log(odds[0] / odds[1]))
    raise AssertionError(method)


def rows(count: int = 50) -> list[list[float]]:
    rng = random.Random(3)
    return [[-rng.uniform(1, 9), -rng.uniform(1, 9), rng.randint(1, 6), rng.randint(1, 6)] for _ in range(count)]


def pairs(values: list[list[float]]) -> PairLogps:
    """The reference's log-probs are NaN: a loss that read one would be NaN."""
    chosen, rejected, *tokens = (torch.tensor(column, dtype=torch.float64) for column in zip(*values, strict=True))
    missing = torch.full_like(chosen, NAN)
    return PairLogps(chosen.requires_grad_(), rejected.requires_grad_(), missing, missing, *tokens)


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.name)
def test_each_objective_and_its_gradient_are_the_formulas(method: Method) -> None:
    values = rows()
    logps = pairs(values)
    objective = method.objective(logps)
    assert objective.tolist() == pytest.approx([by_hand(method, *row) for row in values], rel=1e-11)
    objective.sum().backward()
    step = 1e-6
    for place, column in enumerate((logps.policy_chosen, logps.policy_rejected)):
        slopes = []
        for row in values:
            moved = [[value + sign * step * (place == at) for at, value in enumerate(row)] for sign in (1, -1)]
            slopes.append((by_hand(method, *moved[0]) - by_hand(method, *moved[1])) / (2 * step))
        assert column.grad is not None
        assert column.grad.tolist() == pytest.approx(slopes, abs=1e-7, rel=1e-6)


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.name)
def test_each_loss_is_trls(method: Method) -> None:
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    stub: Any = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), alpha=0.0, label_smoothing=0.0)
    logps = pairs(rows())
    sums = logps.policy_chosen.detach(), logps.policy_rejected.detach()
    means = logps.policy_chosen_mean.detach(), logps.policy_rejected_mean.detach()
    if isinstance(method, SimPo):
        stub.loss_type, stub.beta, stub.simpo_gamma = "simpo", method.beta, method.gamma_ratio * method.beta
        theirs = CPOTrainer.cpo_loss(stub, *means)[0]
    elif isinstance(method, Cpo):
        stub.loss_type, stub.beta = "sigmoid", method.beta
        theirs = CPOTrainer.cpo_loss(stub, *sums)[0] - method.sft_weight * means[0]
    else:
        assert isinstance(method, Orpo)
        stub.beta = method.odds_weight
        theirs = -means[0] - ORPOTrainer.odds_ratio_loss(stub, *means)[0]
    assert method.objective(logps).tolist() == pytest.approx(theirs.tolist(), abs=1e-5)


def test_a_recipe_that_names_a_method_takes_its_defaults_and_refuses_settings_of_others() -> None:
    simpo, cpo = Dpo(loss="simpo"), Dpo(loss="cpo", beta=0.3)
    assert method_of(simpo) == SimPo() and (simpo.beta, simpo.gamma_ratio) == (2.0, 0.5)
    assert method_of(cpo) == Cpo(beta=0.3) and cpo.sft_weight == 1.0
    for one in (simpo, cpo, Dpo(loss="simpo", gamma_ratio=0), Dpo(loss="cpo", sft_weight=0), Dpo()):
        assert Dpo.model_validate_json(one.model_dump_json()) == one, "what is left out of JSON comes back as it was"
    assert Dpo(loss="ipo").beta == 0.1
    for given, words in (
        ({"loss": "simpo", "sft_weight": 0.2}, "sft_weight counts only with loss: sigmoid or "),
        ({"gamma_ratio": 0.2}, "gamma_ratio counts only with loss: simpo"),
        ({"loss": "cpo", "label_smoothing": 0.2}, "label_smoothing counts only with loss: cdpo or robust"),
    ):
        with pytest.raises(ValueError, match=words):
            Dpo.model_validate(given)


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.name)
def test_a_method_without_a_reference_says_so_and_expects_no_first_loss(method: Method) -> None:
    assert not method.needs_reference and method.first_loss() is None
    assert method.start == ("base_model" if method.name == "orpo" else "sft_checkpoint")


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.name)
@pytest.mark.parametrize("row", [[0.0, -900.0, 3, 3], [-900.0, 0.0, 3, 3], [-1e-12, -1e-12, 1, 1]], ids=str)
def test_no_objective_overflows_where_a_side_is_certain_or_all_but_impossible(method: Method, row: list[float]) -> None:
    logps = pairs([row])
    objective = method.objective(logps)
    objective.sum().backward()
    gradients = logps.policy_chosen.grad, logps.policy_rejected.grad
    assert math.isfinite(float(objective.detach())) and all(
        one is not None and bool(one.isfinite().all()) for one in gradients
    )
