"""Held-out pairs as samples, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.training.held_out_pairs import HeldOutPair
from eval.gate.metrics import METRICS, policy_samples, reference_samples, shared_pairs


def pair(row_id: str, policy: tuple[float, float], reference: tuple[float, float], **changes: Any) -> HeldOutPair:
    return HeldOutPair(
        row_id=row_id,
        prompt_id=changes.get("prompt_id", f"prompt of {row_id}"),
        chosen_key=changes.get("chosen_key", f"chosen {row_id}"),
        rejected_key=f"rejected {row_id}",
        chosen_logp=policy[0],
        rejected_logp=policy[1],
        ref_chosen_logp=reference[0],
        ref_rejected_logp=reference[1],
        chosen_tokens=3,
        rejected_tokens=4,
    )


def values(samples: list[Any]) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = {}
    for sample in samples:
        table.setdefault(sample.id, {})[sample.metric] = sample.value
    return table


PAIRS = [
    pair("moved right", (-10.0, -8.0), (-12.0, -7.0)),  # rewards +2 and −1, and still the rejected side is likelier
    pair("moved wrong", (-5.0, -9.0), (-4.0, -9.5)),
    pair("unmoved", (-6.0, -6.0), (-6.0, -6.0)),
]


def test_the_implicit_reward_and_the_plain_log_prob_each_say_which_side_is_preferred() -> None:
    found = values(policy_samples(PAIRS))
    assert found["moved right"] == {"accuracy": 1.0, "margin": 3.0, "ranking_accuracy": 0.0}
    assert found["moved wrong"] == {"accuracy": 0.0, "margin": -1.5, "ranking_accuracy": 1.0}
    assert found["unmoved"] == {"accuracy": 0.5, "margin": 0.0, "ranking_accuracy": 0.5}


def test_the_reference_prefers_neither_side_to_itself_and_has_a_ranking_of_its_own() -> None:
    found = values(reference_samples(PAIRS))
    assert {(one["accuracy"], one["margin"]) for one in found.values()} == {(0.5, 0.0)}
    assert [found[one.row_id]["ranking_accuracy"] for one in PAIRS] == [0.0, 1.0, 0.5]


def test_pairs_of_one_prompt_are_one_cluster_and_every_metric_stands_once_a_pair() -> None:
    both = [pair("a", (0.0, -1.0), (0.0, 0.0), prompt_id="p"), pair("b", (0.0, -1.0), (0.0, 0.0), prompt_id="p")]
    samples = policy_samples(both)
    assert {sample.cluster for sample in samples} == {"p"}
    assert [(sample.id, sample.metric) for sample in samples] == [(name, m) for name in "ab" for m in METRICS]


def test_only_pairs_scored_on_the_same_sequences_against_the_same_reference_are_shared() -> None:
    same, other = pair("same", (-1.0, -2.0), (-1.0, -1.0)), pair("other", (-1.0, -2.0), (-1.0, -1.0))
    elsewhere = pair("other", (-1.0, -2.0), (-1.0, -1.0), chosen_key="of another reference")
    alone = pair("alone", (-1.0, -2.0), (-1.0, -1.0))
    moved = pair("same", (-9.0, -2.0), (-1.0, -1.0))
    assert shared_pairs([same, other, alone], [elsewhere, moved]) == ([same], [moved])
    assert shared_pairs([other], [elsewhere]) == ([], [])


@pytest.mark.parametrize("samples", [policy_samples, reference_samples])
def test_no_pairs_are_no_samples(samples: Any) -> None:
    assert samples([]) == []
