"""The pure losses are TRL's, on values no trained model need reach."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from alignment.methods.dpo import first_loss, minus_log_sigmoid, preference_loss, trl_loss
from alignment.recipe import Dpo

EVERY = [
    Dpo(loss="sigmoid", beta=0.3),
    Dpo(loss="hinge", beta=0.2),
    Dpo(loss="ipo", beta=0.4),
    Dpo(loss="robust", beta=0.3, label_smoothing=0.1),
    Dpo(loss="sigmoid_norm", beta=2.0),
]


class Stub:
    """What TRL's loss reads of its trainer, and a model whose log-probs are given."""

    def __init__(self, settings: Dpo) -> None:
        from collections import defaultdict
        from types import SimpleNamespace

        import torch

        self.model = SimpleNamespace(training=True)
        self.accelerator = SimpleNamespace(
            device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
        )
        self.aux_loss_enabled = self.use_weighting = False
        self.ld_alpha, self.f_divergence_type, self.precompute_ref_logps = None, "reverse_kl", True
        self.beta, self.label_smoothing = settings.beta, settings.label_smoothing
        self.loss_types, self.loss_weights = trl_loss(settings)
        self._metrics: Any = {"train": defaultdict(list)}
        self._total_train_tokens, self._tp_size = 0, 1


@pytest.mark.parametrize("settings", EVERY, ids=lambda settings: settings.loss)
def test_each_loss_is_trls(settings: Dpo) -> None:
    from types import SimpleNamespace

    import torch
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
        chosen, rejected = (logps.sum(1) - reference[:, 0]).tolist()
        assert preference_loss(settings, chosen, rejected, *tokens) == pytest.approx(float(theirs), abs=1e-5)


def test_a_policy_that_is_its_reference_has_the_loss_theory_gives() -> None:
    given = {settings.loss: first_loss(settings) for settings in EVERY}
    assert given["sigmoid"] == given["sigmoid_norm"] == math.log(2)
    assert given["robust"] == pytest.approx(math.log(2))
    assert given["hinge"] == 1.0
    assert given["ipo"] == pytest.approx(1 / 0.8**2)


def test_the_log_sigmoid_does_not_overflow() -> None:
    assert minus_log_sigmoid(-1e4) == 1e4
    assert minus_log_sigmoid(1e4) == 0.0


def test_the_sft_term_is_trls_second_loss() -> None:
    assert trl_loss(Dpo(sft_weight=0.25)) == (["sigmoid", "sft"], [1.0, 0.25])
