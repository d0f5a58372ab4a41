"""Held-out pairs as samples, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.training.held_out_pairs import HeldOutCompletion, HeldOutPair, parse_held_out, write_held_out
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


def thumb(row_id: str, label: bool, moved: float, partner: float | None = 0.0, key: str = "k") -> HeldOutCompletion:
    """A completion whose log-ratio is `moved` nats, and whose partner's is `partner`."""
    partners = (None, None) if partner is None else (partner - 7.0, -7.0)
    tokens = None if partner is None else 5
    return HeldOutCompletion(
        row_id, f"prompt of {row_id}", label, key, "p", moved - 9.0, partners[0], -9.0, partners[1], 4, tokens
    )


def test_a_completion_is_right_on_its_labels_side_of_the_divergence_of_all() -> None:
    """z₀ is (1 + 3) / 2 = 2 nats: a row without a partner does not count there."""
    rows = [thumb("up", True, 3.0, 1.0), thumb("down", False, 3.0, 3.0), thumb("tie", True, 2.0, None)]
    assert values(policy_samples(rows)) == {
        "up": {"accuracy": 1.0, "margin": 1.0},
        "down": {"accuracy": 0.0, "margin": -1.0},
        "tie": {"accuracy": 0.5, "margin": 0.0},
    }
    assert {tuple(each.items()) for each in values(reference_samples(rows)).values()} == {
        (("accuracy", 0.5), ("margin", 0.0))
    }
    below = [thumb("up", True, 0.5, -4.0), thumb("down", False, -0.5, -4.0)]
    assert {each["accuracy"] for each in values(policy_samples(below)).values()} == {1.0}, "z₀ is never below 0"


def test_completions_that_two_policies_share_are_those_of_the_same_sequences() -> None:
    first, second = (
        [thumb("a", True, 1.0), thumb("b", True, 1.0)],
        [thumb("b", True, 2.0), thumb("a", True, 2.0, key="x")],
    )
    assert [[row.row_id for row in side] for side in shared_pairs(first, second)] == [["b"], ["b"]]


def test_completions_go_to_their_file_and_back_by_row_id(tmp_path: Any) -> None:
    rows = [thumb("b", True, 1.0), thumb("a", False, 2.0, None)]
    write_held_out(tmp_path, rows)
    assert parse_held_out((tmp_path / "held_out.parquet").read_bytes()) == rows[::-1]
