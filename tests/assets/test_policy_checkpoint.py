"""The node of the policy: what its request takes."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.errors import BadInput
from tests.assets.test_policy_divergence import nodes


def test_the_sft_data_set_is_an_input_only_where_rows_of_it_are_shown_beside_preferences() -> None:
    assert "sft_dataset" not in nodes()["policy_checkpoint"].needs
    assert "sft_dataset" in nodes(dpo={"sft_rows_fraction": 0.1})["policy_checkpoint"].needs


ON_POLICY: dict[str, Any] = {"prompts": {"embedded": "micro"}, "n": 4, "score": {"kind": "rubric"}}
GRPO: dict[str, Any] = {"method": "grpo", "batch_size": 8}


def test_an_on_policy_method_has_a_stage_of_its_own_and_no_reference() -> None:
    found = nodes(optimise=GRPO, on_policy=ON_POLICY)
    assert found["policy_checkpoint"].stage.name == "on_policy_checkpoint"
    assert found["policy_checkpoint"].stage.kind == "policy_checkpoint"
    assert "reference_logprobs" not in found
    assert found["policy_checkpoint"].needs == ("preference_manifest", "sft_checkpoint")


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"optimise": GRPO}, "method: grpo trains on answers to prompts: give the section on_policy"),
        ({"on_policy": ON_POLICY}, "on_policy is what method: grpo trains on, and method: dpo takes preferences"),
        ({"optimise": GRPO | {"lora": {}}, "on_policy": ON_POLICY}, "lora does not go with method: grpo"),
        ({"optimise": GRPO | {"beta": 0.1}, "on_policy": ON_POLICY}, "beta counts only with method: dpo"),
        ({"optimise": GRPO | {"micro_batch_size": 5}, "on_policy": ON_POLICY}, "does not divide the 32 answers"),
        ({"optimise": GRPO, "on_policy": ON_POLICY | {"score": {"kind": "judge"}}}, "score: judge verifies nothing"),
        ({"optimise": GRPO, "on_policy": ON_POLICY, "rounds": ON_POLICY | {"count": 2}}, "grpo and rounds"),
        ({"optimise": GRPO, "on_policy": ON_POLICY | {"n": 1}}, "on_policy.n"),
    ],
)
def test_what_does_not_go_with_an_on_policy_method_is_named(sections: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput) as error:
        nodes(**sections)
    assert told in str(error.value) and "\n" not in str(error.value)
