"""The node of the policy: what its request takes."""

from __future__ import annotations

from tests.assets.test_policy_divergence import nodes


def test_the_sft_data_set_is_an_input_only_where_rows_of_it_are_shown_beside_preferences() -> None:
    assert "sft_dataset" not in nodes()["policy_checkpoint"].needs
    assert "sft_dataset" in nodes(dpo={"sft_rows_fraction": 0.1})["policy_checkpoint"].needs
