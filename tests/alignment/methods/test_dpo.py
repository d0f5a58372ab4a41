"""The pure losses are TRL's, on values no trained model need reach."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from alignment.methods import METHODS, ON_POLICY, PairLogps, method_of
from alignment.recipe import Dpo, Lora

EVERY = [
    Dpo(loss="sigmoid", beta=0.3),
    Dpo(loss="hinge", beta=0.2),
    Dpo(loss="ipo", beta=0.4),
    Dpo(loss="robust", beta=0.3, label_smoothing=0.1),
    Dpo(loss="cdpo", beta=0.3, label_smoothing=0.2),
    Dpo(loss="sigmoid_norm", beta=2.0),
    Dpo(loss="apo_zero", beta=0.3),
    Dpo(loss="apo_down", beta=0.3),
]
THEIRS = {"cdpo": "aot"}
"""TRL's name where it is another: its `aot` of one pair is cDPO."""


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
        self.loss_types, self.loss_weights = [THEIRS.get(settings.loss, settings.loss)], [1.0]
        if settings.sft_weight:
            self.loss_types, self.loss_weights = [*self.loss_types, "sft"], [1.0, settings.sft_weight]
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
    assert given["cdpo"] == pytest.approx(math.log(2))
    assert given["apo_zero"] == given["apo_down"] == 1.0
    assert given["hinge"] == 1.0
    assert given["ipo"] == pytest.approx(1 / 0.8**2)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(settings: Dpo, rows: list[list[float]]) -> list[float]:
    """Each formula as its paper writes it, in Python's floats: DPO eq. 7 of Rafailov et al. 2023, IPO eq. 17 of Azar
    et al. 2023, cDPO eq. 3 of Mitchell 2023, APO eq. 7 and 8 of D'Oosterlinck et al. 2024."""
    found = []
    for chosen, rejected, ref_chosen, ref_rejected, chosen_tokens, rejected_tokens in rows:
        margin = (chosen - ref_chosen) - (rejected - ref_rejected)
        per_token = (chosen - ref_chosen) / chosen_tokens - (rejected - ref_rejected) / rejected_tokens
        log_sigmoid = {sign: -math.log(1 + math.exp(-sign * settings.beta * margin)) for sign in (1, -1)}
        ratios = settings.beta * (chosen - ref_chosen), settings.beta * (rejected - ref_rejected)
        flips = settings.label_smoothing
        aimed = per_token if settings.length_normalised else margin
        found.append(
            {
                "sigmoid": -log_sigmoid[1],
                "hinge": max(0.0, 1 - settings.beta * margin),
                "ipo": (aimed - 1 / (2 * settings.beta)) ** 2,
                "cdpo": -(1 - flips) * log_sigmoid[1] - flips * log_sigmoid[-1],
                "apo_zero": 1 - sigmoid(ratios[0]) + sigmoid(ratios[1]),
                "apo_down": sigmoid(ratios[0]) + 1 - sigmoid(ratios[0] - ratios[1]),
                "robust": (-(1 - flips) * log_sigmoid[1] + flips * log_sigmoid[-1]) / (1 - 2 * flips),
                "sigmoid_norm": math.log(1 + math.exp(-settings.beta * per_token)),
            }[settings.loss]
        )
    return found


@pytest.mark.parametrize(
    "settings",
    [*EVERY, Dpo(loss="ipo", length_normalised=False)],
    ids=lambda settings: f"{settings.loss}{'' if settings.length_normalised else ' of sums'}",
)
def test_each_loss_and_its_gradient_are_the_formulas(settings: Dpo) -> None:
    rng = random.Random(2)
    rows = [[-rng.uniform(1, 9) for _ in range(4)] + [rng.randint(1, 6) for _ in range(2)] for _ in range(50)]
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]
    policy = columns[:2]
    for column in policy:
        column.requires_grad_()
    loss = method_of(settings).loss(PairLogps(*columns))
    assert loss.tolist() == pytest.approx(by_hand(settings, rows), rel=1e-12)
    loss.sum().backward()
    for place, column in enumerate(policy):
        assert column.grad is not None
        assert column.grad.tolist() == pytest.approx(slopes(settings, rows, place), abs=1e-7, rel=1e-7)


def slopes(settings: Dpo, rows: list[list[float]], place: int, step: float = 1e-6) -> list[float]:
    """Central differences of the formula in one column."""
    moved = [
        by_hand(settings, [[value + sign * step * (place == at) for at, value in enumerate(row)] for row in rows])
        for sign in (1, -1)
    ]
    return [(high - low) / (2 * step) for high, low in zip(*moved, strict=True)]


def test_the_margin_that_cdpo_and_ipo_aim_at_is_finite() -> None:
    """A DPO loss falls with the margin for ever; these have their minimum where their papers say."""
    for settings, optimum in (
        (Dpo(loss="cdpo", beta=0.5, label_smoothing=0.2), math.log(0.8 / 0.2) / 0.5),
        (Dpo(loss="ipo", beta=0.25), 2.0),
        (Dpo(loss="ipo", beta=0.25, length_normalised=False), 2.0),
    ):
        margin = torch.tensor([optimum], dtype=torch.float64, requires_grad=True)
        zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        method_of(settings).loss(PairLogps(margin, zero, zero, zero, one, one)).sum().backward()
        assert margin.grad is not None and float(margin.grad) == pytest.approx(0, abs=1e-12)
    margin = torch.tensor([1e3], dtype=torch.float64, requires_grad=True)
    method_of(Dpo(beta=0.1)).loss(PairLogps(margin, zero, zero, zero, one, one)).sum().backward()
    assert margin.grad is not None and float(margin.grad) < 0


def test_apo_pushes_each_side_where_its_paper_says() -> None:
    """Eq. 7: chosen up, rejected down. Eq. 8: chosen down where the two are far enough apart, rejected always down."""
    for loss, signs in (("apo_zero", (-1, 1)), ("apo_down", (1, 1))):
        policy = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (-2.0, -90.0)]
        fixed = [torch.tensor([value], dtype=torch.float64) for value in (-2.0, -2.0, 1.0, 1.0)]
        method_of(Dpo(loss=loss)).loss(PairLogps(*policy, *fixed)).sum().backward()
        assert [math.copysign(1, float(side.grad)) for side in policy if side.grad is not None] == list(signs)


def test_no_loss_overflows() -> None:
    far = [pair(sign * 1e4, 0, 0, 0) for sign in (1, -1)]
    assert [float(method_of(Dpo(beta=1.0)).loss(rows)) for rows in far] == [0.0, 1e4]
    assert [float(method_of(Dpo(beta=1.0, loss="apo_zero")).loss(rows)) for rows in far] == [0.5, 1.5]
    assert [float(method_of(Dpo(beta=1.0, loss="apo_down")).loss(rows)) for rows in far] == [1.0, 1.0]


def test_the_sft_term_of_a_row_depends_on_no_other_row() -> None:
    """TRL's is a mean over the tokens of a micro batch: rows of 1 and of 9 tokens would weigh 1 to 9."""
    method = method_of(Dpo(sft_weight=0.25))
    rows = [pair(-3.0, -1, -3, -1, 1, 2), pair(-18.0, -1, -18, -1, 9, 2)]
    terms = [float(method.objective(row) - method.loss(row)) for row in rows]
    assert terms == pytest.approx([0.25 * 3.0, 0.25 * 2.0])


def test_a_recipe_can_name_every_method_and_no_other() -> None:
    assert set(Dpo.model_json_schema()["properties"]["loss"]["enum"]) == (METHODS | ON_POLICY).keys()
    with pytest.raises(ValueError, match="there is no 'sigmod'; did you mean sigmoid"):
        Dpo(loss="sigmod")


def test_a_setting_of_another_method_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="label_smoothing counts only with loss: cdpo or robust"):
        Dpo(loss="ipo", label_smoothing=0.1)
    with pytest.raises(ValueError, match="length_normalised counts only with loss: ipo"):
        Dpo(length_normalised=False)
    for loss in ("cdpo", "robust"):
        with pytest.raises(ValueError, match=f"loss: {loss} needs label_smoothing above 0"):
            Dpo(loss=loss)


@pytest.mark.parametrize(
    ("settings", "trained", "notes"),
    [
        (Dpo(), "all weights", []),
        (Dpo(learning_rate=5e-6, lora=Lora(rank=32)), "LoRA", []),
        (Dpo(loss="cdpo", label_smoothing=0.1), "all weights", []),
        (Dpo(learning_rate=1e6), "all weights", ["learning_rate 1e6 is outside 5e-7 to 5e-6"]),
        (
            Dpo(loss="ipo", beta=500, epochs=50),
            "all weights",
            ["epochs 50 is outside 1 to 2", "beta 500 is outside 0.01 to 1"],
        ),
        (
            Dpo(loss="sigmoid_norm", lora=Lora(rank=64)),
            "LoRA",
            [
                "learning_rate 5e-7 is outside 5e-6 to 5e-5",
                "lora.rank 64 is outside 16 to 32",
                "beta 0.1 is outside 1 to 10",
            ],
        ),
        (Dpo(loss="robust", label_smoothing=0.45), "all weights", ["label_smoothing 0.45 is outside 0.01 to 0.3"]),
        (Dpo(adam_betas=(0.9, 0.5)), "all weights", ["adam_betas β₂ 0.5 is outside 0.95 to 0.999"]),
    ],
)
def test_a_setting_outside_of_what_practice_supports_is_noted_in_a_sentence(
    settings: Dpo, trained: str, notes: list[str]
) -> None:
    supports = f", which practice supports for loss: {settings.loss} with {trained}"
    sizes = " (models of 1B and more)"
    told = [f"dpo.{note}{supports}{sizes if 'learning_rate' in note else ''}" for note in notes]
    assert settings.outside_practice() == told
