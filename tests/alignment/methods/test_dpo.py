"""The pure losses are TRL's, on values no trained model need reach."""

from __future__ import annotations

import math
import random
from typing import Any, get_args

import pytest
import torch

from alignment.methods import METHODS, PairLogps, method_of
from alignment.recipe import Dpo

EVERY = [
    Dpo(loss="sigmoid", beta=0.3),
    Dpo(loss="hinge", beta=0.2),
    Dpo(loss="ipo", beta=0.4),
    Dpo(loss="robust", beta=0.3, label_smoothing=0.1),
    Dpo(loss="sigmoid_norm", beta=2.0),
]


def pair(*values: Any) -> PairLogps:
    """One pair's log-probs: policy's chosen and rejected, reference's, and tokens (1 where not given)."""
    filled = [*values, 1, 1][:6]
    return PairLogps(*(torch.tensor([float(value)], dtype=torch.float64) for value in filled))


class Stub:
    """What TRL's loss reads of its trainer, and a model whose log-probs are given."""

    def __init__(self, settings: Dpo) -> None:
        from collections import defaultdict
        from types import SimpleNamespace

        self.model = SimpleNamespace(training=True)
        self.accelerator = SimpleNamespace(
            device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
        )
        self.aux_loss_enabled = self.use_weighting = False
        self.ld_alpha, self.f_divergence_type, self.precompute_ref_logps = None, "reverse_kl", True
        self.beta, self.label_smoothing = settings.beta, settings.label_smoothing
        self.loss_types, self.loss_weights = [settings.loss], [1.0]
        if settings.sft_weight:
            self.loss_types, self.loss_weights = [settings.loss, "sft"], [1.0, settings.sft_weight]
        self._metrics: Any = {"train": defaultdict(list)}
        self._total_train_tokens, self._tp_size = 0, 1


@pytest.mark.parametrize(
    "settings", [*EVERY, Dpo(sft_weight=0.25)], ids=lambda settings: f"{settings.loss}{settings.sft_weight or ''}"
)
def test_each_objective_is_trls_on_a_batch_of_one_pair(settings: Dpo) -> None:
    from types import SimpleNamespace

    from trl import DPOTrainer

    rng = random.Random(1)
    for _ in range(5):
        tokens = [rng.randint(1, 6), rng.randint(1, 6)]
        mask = torch.tensor([[0, *([1] * count), *([0] * (6 - count))] for count in tokens])
        logps = -5 * torch.rand(2, 6) * mask[:, 1:]
        reference = -5 * torch.rand(2, 1)
        outputs = SimpleNamespace(
            log_probs=logps, entropy=logps * 0, mean_logits=logps * 0, is_top1=torch.zeros(2, 6, dtype=torch.bool)
        )
        inputs = {
            "input_ids": torch.ones_like(mask),
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask,
            "ref_chosen_logps": reference[0],
            "ref_rejected_logps": reference[1],
        }
        theirs = DPOTrainer._compute_loss(Stub(settings), lambda outputs=outputs, **_: outputs, inputs, False)
        chosen, rejected = logps.double().sum(1)
        ours = method_of(settings).objective(pair(chosen, rejected, *reference[:, 0].double(), *tokens))
        assert float(ours) == pytest.approx(float(theirs), abs=1e-5)


def test_a_policy_that_is_its_reference_has_the_loss_theory_gives() -> None:
    given = {settings.loss: method_of(settings).first_loss() for settings in EVERY}
    assert given["sigmoid"] == given["sigmoid_norm"] == math.log(2)
    assert given["robust"] == pytest.approx(math.log(2))
    assert given["hinge"] == 1.0
    assert given["ipo"] == pytest.approx(1 / 0.8**2)


def by_hand(settings: Dpo, rows: list[list[float]]) -> list[float]:
    """Each formula as its paper writes it, in Python's floats."""
    found = []
    for chosen, rejected, ref_chosen, ref_rejected, chosen_tokens, rejected_tokens in rows:
        margin = (chosen - ref_chosen) - (rejected - ref_rejected)
        per_token = (chosen - ref_chosen) / chosen_tokens - (rejected - ref_rejected) / rejected_tokens
        log_sigmoid = {sign: -math.log(1 + math.exp(-sign * settings.beta * margin)) for sign in (1, -1)}
        flips = settings.label_smoothing
        found.append(
            {
                "sigmoid": -log_sigmoid[1],
                "hinge": max(0.0, 1 - settings.beta * margin),
                "ipo": (per_token - 1 / (2 * settings.beta)) ** 2,
                "robust": (-(1 - flips) * log_sigmoid[1] + flips * log_sigmoid[-1]) / (1 - 2 * flips),
                "sigmoid_norm": math.log(1 + math.exp(-settings.beta * per_token)),
            }[settings.loss]
        )
    return found


@pytest.mark.parametrize("settings", EVERY, ids=lambda settings: settings.loss)
def test_each_loss_and_its_gradient_are_the_formulas(settings: Dpo) -> None:
    rng = random.Random(2)
    rows = [[-rng.uniform(1, 9) for _ in range(4)] + [rng.randint(1, 6) for _ in range(2)] for _ in range(50)]
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]
    columns[0].requires_grad_()
    loss = method_of(settings).loss(PairLogps(*columns))
    assert loss.tolist() == pytest.approx(by_hand(settings, rows), rel=1e-12)
    loss.sum().backward()
    step = 1e-6
    above, below = (by_hand(settings, [[row[0] + sign * step, *row[1:]] for row in rows]) for sign in (1, -1))
    numeric = [(high - low) / (2 * step) for high, low in zip(above, below, strict=True)]
    assert columns[0].grad is not None
    assert columns[0].grad.tolist() == pytest.approx(numeric, abs=1e-7)


def test_no_loss_overflows() -> None:
    far = [pair(sign * 1e4, 0, 0, 0) for sign in (1, -1)]
    assert [float(method_of(Dpo(beta=1.0)).loss(rows)) for rows in far] == [0.0, 1e4]


def test_the_sft_term_of_a_row_depends_on_no_other_row() -> None:
    """TRL's is a mean over the tokens of a micro batch: rows of 1 and of 9 tokens would weigh 1 to 9."""
    method = method_of(Dpo(sft_weight=0.25))
    rows = [pair(-3.0, -1, -3, -1, 1, 2), pair(-18.0, -1, -18, -1, 9, 2)]
    terms = [float(method.objective(row) - method.loss(row)) for row in rows]
    assert terms == pytest.approx([0.25 * 3.0, 0.25 * 2.0])


def test_a_recipe_can_name_every_method_and_no_other() -> None:
    assert set(get_args(Dpo.model_fields["loss"].annotation)) == METHODS.keys()


def test_a_setting_of_another_method_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="label_smoothing counts only with loss: robust"):
        Dpo(loss="ipo", label_smoothing=0.1)
    with pytest.raises(ValueError, match="loss: robust needs label_smoothing above 0"):
        Dpo(loss="robust")
