"""The balancing term of experts: Transformers' own, taken over each sequence alone, whatever pass it goes through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from alignment.errors import BadInput
from alignment.methods import method_of
from alignment.models.runner import Runner
from alignment.recipe import Dpo
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE
from alignment.stages.sft_checkpoint import STAGE as SFT
from alignment.training import packed_step
from alignment.training.pairs import PolicyPair
from alignment.training.router import RouterLoss
from tests.alignment.training.test_odd_models import EXPERTS, adopted
from tests.alignment.training.test_packed_step import apart, exact, gradients, model_of, packed, rows_of

METHOD = method_of(Dpo())
COEFFICIENT = 0.7


def balance(model: Any, rows: list[PolicyPair]) -> torch.Tensor:
    """The mean over rows, sides and layers of the library's function, by a forward pass of each side alone."""
    terms = []
    for row in rows:
        for side in (row.chosen, row.rejected):
            ids = torch.tensor([(side.prompt_ids + side.completion_ids)[:-1]])
            logits = model.base_model(input_ids=ids, output_router_logits=True, use_cache=False).router_logits
            experts, each = model.config.num_experts, model.config.num_experts_per_tok
            terms += [load_balancing_loss_func((layer,), experts, each) for layer in logits]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("tokens", [2048, 60])
@pytest.mark.parametrize("shared", [None, False])
def test_value_and_gradient_are_those_of_each_sequence_alone(
    tokens: int, shared: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with exact(monkeypatch):
        model, rows = model_of("experts", torch.float64), rows_of(3, 8)
        _, without = packed(model, rows, METHOD)
        model.zero_grad()
        expected = balance(model, rows)
        (COEFFICIENT * expected).backward()
        wanted = {name: grad + without.get(name, 0.0) for name, grad in gradients(model).items()}
        model.zero_grad()
        runner = Runner.of(model, rows[0].chosen)
        runner.shared = shared
        router = RouterLoss(model, COEFFICIENT)
        numbers = packed_step.backward(runner, METHOD, rows, len(rows), tokens, (), router=router)
        assert numbers.router_loss / len(rows) == pytest.approx(float(expected), rel=1e-6)
        # the library's function sums in float32
        assert apart(gradients(model), without | wanted) < 1e-5


def test_a_model_without_routers_is_refused_by_its_field() -> None:
    with pytest.raises(BadInput, match="has no routers that can be balanced") as refused:
        RouterLoss(model_of("llama", torch.float32), 0.1)
    assert refused.value.field == "router_aux_loss_coef"


def test_it_is_trained_on_where_the_recipe_asks_and_shown_beside_the_loss(lab: Any) -> None:
    checkpoint = adopted(lab, "qwen3_moe", **EXPERTS)
    manifest = lab.manifest(checkpoint, lab.rows(16))
    asked = {"epochs": 6.0, "learning_rate": 1e-2, "batch_size": 8}
    plain, balanced = (
        execute(STAGE, lab.dpo_request(checkpoint, manifest, **asked, **more), lab.store)
        for more in ({}, {"router_aux_loss_coef": 1.0, "gradient_checkpointing": True})
    )
    assert plain.digest != balanced.digest
    shown = [record["router_loss"] for record in balanced.summary["history"]]
    assert "router_loss" not in plain.summary["history"][0]
    assert shown[-1] < shown[0] and shown[-1] >= 2.0 - 1e-6  # as many experts a token, when all have their share
    assert balanced.summary["first_loss"] == pytest.approx(plain.summary["first_loss"])


def test_fine_tuning_a_model_without_routers_is_refused_too(lab: Any) -> None:
    with pytest.raises(BadInput, match="has no routers"):
        execute(SFT, lab.sft_request(lab.checkpoint(), lab.sft_dataset(8), router_aux_loss_coef=0.1), lab.store)


def test_fine_tuning_takes_the_librarys_own(lab: Any) -> None:
    dataset, checkpoint = lab.sft_dataset(8), adopted(lab, "qwen3_moe", **EXPERTS)
    losses = [
        execute(SFT, lab.sft_request(checkpoint, dataset, router_aux_loss_coef=weight), lab.store).summary["history"]
        for weight in (0.0, 5.0)
    ]
    assert losses[1][0]["loss"] > losses[0][0]["loss"] + 1.0
