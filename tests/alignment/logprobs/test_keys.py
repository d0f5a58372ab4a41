from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.data.tokens import TokenSequence
from alignment.digest import json_digest
from alignment.logprobs.keys import fingerprint, numerics_class, policy_digest, sequence_key
from alignment.recipe import TokenPolicy

IDS = st.lists(st.integers(0, 300_000), min_size=1, max_size=4).map(tuple)
SEQUENCES = st.builds(TokenSequence, IDS, IDS)


@given(SEQUENCES, SEQUENCES)
def test_two_sequences_share_a_key_only_if_prompt_and_completion_are_the_same(
    one: TokenSequence, other: TokenSequence
) -> None:
    assert (sequence_key("f", one) == sequence_key("f", other)) is (one == other)


@given(IDS, IDS)
def test_where_the_prompt_ends_is_part_of_the_key(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    whole = one + other
    keys = {sequence_key("f", TokenSequence(whole[:cut], whole[cut:])) for cut in range(1, len(whole))}
    assert len(keys) == len(whole) - 1


def test_a_key_has_128_bits_and_belongs_to_one_reference() -> None:
    sequence = TokenSequence((1, 2), (3,))
    assert len(sequence_key("f", sequence)) == 16
    assert sequence_key("f", sequence) != sequence_key("g", sequence)


def test_everything_a_value_depends_on_changes_the_fingerprint() -> None:
    variants = [
        fingerprint("w", "c", "float32"),
        fingerprint("v", "c", "float32"),
        fingerprint("w", "d", "float32"),
        fingerprint("w", "c", "bfloat16"),
        fingerprint("w", "c", "float32", attention="eager"),
        fingerprint("w", "c", "float32", adapter="a", adapter_merged=False),
        fingerprint("w", "c", "float32", quantisation="int8"),
        fingerprint("w", "c", "float32", scorer_version=0),
        fingerprint("w", "c", "float32", rope_by_length=True),
        fingerprint("w", "c", "float16"),
        fingerprint("w", "c", "bfloat16", numerics="flash 16384"),
        fingerprint("w", "c", "bfloat16", numerics="flash 32768"),
        fingerprint("w", "c", "bfloat16", rope_by_length=True),
        fingerprint("w", "c", "float32", numerics="tf32, passes of 16384"),
        fingerprint("w", "c", "float32", numerics="tf32, passes of 32768"),
    ]
    assert len(set(variants)) == len(variants)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_values_of_32_and_64_bits_have_the_name_that_version_0_1_0_gave_them(precision: str) -> None:
    asked = {"weights": "w", "config": "c", "precision": precision, "attention": "sdpa full", "adapter": None}
    asked |= {"adapter_merged": True, "quantisation": None, "scorer": 2}
    assert fingerprint("w", "c", precision) == json_digest(asked)
    with pytest.raises(ValueError, match="no numerics class"):
        fingerprint("w", "c", precision, numerics="flash 16384")


def test_values_of_16_bits_are_another_scorers_than_those_of_version_0_1_0() -> None:
    assert fingerprint("w", "c", "bfloat16") == fingerprint("w", "c", "bfloat16", scorer_version=3)
    assert fingerprint("w", "c", "bfloat16") != fingerprint("w", "c", "bfloat16", scorer_version=2)


def test_everything_that_decides_ids_changes_the_policy_digest() -> None:
    policy = TokenPolicy(max_length=8)
    variants = [
        policy_digest(policy, "t"),
        policy_digest(policy, "u"),
        policy_digest(policy, "t", (5,)),
        policy_digest(policy, "t", (5, 6)),
        *(
            policy_digest(TokenPolicy.model_validate({"max_length": 8, **other}), "t")
            for other in (
                {"max_length": 9},
                {"truncation": "keep_end"},
                {"max_prompt_length": 4},
                {"system": "drop"},
                {"plain_text": "chat"},
                {"today": "2025-01-01"},
            )
        ),
    ]
    assert len(set(variants)) == len(variants)


def test_what_decides_no_ids_leaves_the_policy_digest_as_it_is() -> None:
    policy, other_day = TokenPolicy(max_length=8), TokenPolicy.model_validate({"max_length": 8, "today": "2025-01-01"})
    assert policy_digest(TokenPolicy(max_length=8, max_dropped=0.5), "t") == policy_digest(policy, "t")
    assert policy_digest(other_day, "t", is_dated=False) == policy_digest(policy, "t", is_dated=False)
    assert policy_digest(policy, "t", (6, 5)) == policy_digest(policy, "t", (5, 6))


def test_tf32_has_values_of_its_own_on_a_gpu_and_the_same_as_without_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert numerics_class("float32", 16384, dict, tf32=True) == "any"
    monkeypatch.setattr("alignment.logprobs.keys.default_device", lambda: torch.device("cuda"))
    assert numerics_class("float32", 16384, dict) == "any"
    assert numerics_class("float32", 16384, dict, tf32=True) == "tf32, passes of 16384"


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"attn_logit_softcapping": 50.0}, "flex"),
        ({"text_config": {"attn_logit_softcapping": 50.0}}, "flex"),
        ({"attn_logit_softcapping": None}, "flash"),
        ({}, "flash"),
    ],
)
def test_the_numerics_class_names_what_attends(
    config: dict[str, Any], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flash attention caps no logits."""
    monkeypatch.setattr("alignment.models.capped.family", lambda: "flex")
    assert numerics_class("bfloat16", 16384, lambda: config) == "any", "on a CPU"
    monkeypatch.setattr("alignment.logprobs.keys.default_device", lambda: torch.device("cuda"))
    assert numerics_class("bfloat16", 16384, lambda: config) == f"{family}, passes of 16384"
    assert numerics_class("float32", 16384, lambda: config) == "any"


def test_tf32_stays_off_for_rotary_angles_and_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU has no TF32: what is looked at is the switch, as it stands while a module runs."""
    from alignment.models.runner import tf32_products

    seen: list[tuple[str, str]] = []

    class Watched(torch.nn.Module):
        def __init__(self, buffer: str) -> None:
            super().__init__()
            self.register_buffer(buffer, torch.ones(1))
            self.named = buffer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((self.named, torch.get_float32_matmul_precision()))
            return x

    modules = [Watched("weight_of_a_layer"), Watched("full_attention_inv_freq"), Watched("weight_of_a_layer")]
    with tf32_products(True):
        torch.nn.Sequential(*modules)(torch.ones(1))
    assert {precision for _, precision in seen} == {"highest"}  # no GPU, no TF32
    seen.clear()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with tf32_products(True):
        torch.nn.Sequential(*modules)(torch.ones(1))
    assert [precision for _, precision in seen] == ["high", "highest", "high"]
    assert torch.get_float32_matmul_precision() == "highest"
