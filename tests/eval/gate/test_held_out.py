"""A policy's held-out pairs in a report's evidence and before the gate."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from alignment.recipe import Gate, Requirement
from alignment.stages import execute
from alignment.store import Artifact, CorruptArtifact, Store
from alignment.training.held_out_pairs import HELD_OUT_FILE, HeldOutPair, write_held_out
from eval.gate.evidence import ReportRequest, gather, recompute, verdict_of
from eval.gate.requirement import NO_PAIRS, NO_SHARED_PAIRS, OTHER_REFERENCE
from eval.stages.evaluation_report import STAGE
from eval.statistics import clustered_mean

GATE = Gate(metrics={"preferences/accuracy": Requirement(improve=0.0)})
Commit = Callable[[str, Sequence[HeldOutPair]], Artifact]


def pairs(start: int, stop: int, right: float, reference: str = "r", seed: int = 0) -> list[HeldOutPair]:
    """Pairs start to stop, two a prompt, of which about this share is moved to the chosen side."""
    rng = random.Random(seed)
    return [
        HeldOutPair(
            row_id=f"row {n:04d}",
            prompt_id=f"prompt {n // 2}",
            chosen_key=f"{reference} chosen {n}",
            rejected_key=f"{reference} rejected {n}",
            chosen_logp=-20.0 + (rng.random() if rng.random() < right else -rng.random()),
            rejected_logp=-21.0,
            ref_chosen_logp=-20.0,
            ref_rejected_logp=-21.0,
            chosen_tokens=5,
            rejected_tokens=6,
        )
        for n in range(start, stop)
    ]


@pytest.fixture
def policy(commit_checkpoint: Callable[..., Artifact], tmp_path: Path) -> Commit:
    """Commits a policy that was measured on these pairs."""

    def commit(name: str, measured: Sequence[HeldOutPair]) -> Artifact:
        folder = tmp_path / name
        folder.mkdir()
        write_held_out(folder, measured)
        return commit_checkpoint(name, folder)

    return commit


@pytest.fixture
def asked(commit_checkpoint: Callable[..., Artifact]) -> Callable[..., ReportRequest]:
    def request(policy: Artifact, champion: Artifact | None = None) -> ReportRequest:
        sft = commit_checkpoint("sft")
        return ReportRequest(
            sft=sft,
            policy=policy,
            sft_scores={},
            policy_scores={},
            champion=champion,
            champion_scores={},
            gate=GATE,
        )

    return request


def test_accuracy_is_compared_with_the_half_that_the_sft_baseline_has_by_definition(
    store: Store, policy: Commit, asked: Callable[..., ReportRequest]
) -> None:
    measured = pairs(0, 300, 0.7)
    found = gather(store, asked(policy("p", measured))).against_sft.suites["preferences"]
    right = [float(one.chosen_ratio > one.rejected_ratio) for one in measured]
    expected = clustered_mean([value - 0.5 for value in right], [one.prompt_id for one in measured])
    assert (found["accuracy"].baseline, found["accuracy"].n, found["accuracy"].clusters) == (0.5, 300, 150)
    assert found["accuracy"].difference == pytest.approx(expected.value)
    assert found["accuracy"].stderr == pytest.approx(expected.stderr)
    assert found["accuracy"].width == 1.0 and found["accuracy"].verdict == "improved"
    assert found["margin"].baseline == 0.0 and found["margin"].width is None
    assert found["ranking_accuracy"].baseline == 1.0


def test_a_nearly_perfect_accuracy_has_an_interval_within_what_is_possible(
    store: Store, policy: Commit, asked: Callable[..., ReportRequest]
) -> None:
    found = gather(store, asked(policy("p", pairs(0, 120, 0.98)))).against_sft.suites["preferences"]["accuracy"]
    assert found.ci95 is not None and found.shares is not None
    assert 0.4 < found.ci95[0] < found.difference < found.ci95[1] <= 0.5


def test_the_gate_decides_on_held_out_pairs_and_recomputes_the_same_from_the_checkpoint(
    store: Store, policy: Commit, asked: Callable[..., ReportRequest]
) -> None:
    better, even = policy("better", pairs(0, 300, 0.7)), policy("even", pairs(0, 300, 0.5))
    report = execute(STAGE, asked(better), store).artifact
    verdict = recompute(store, report, better, GATE)
    assert verdict.outcome == "pass" and verdict == verdict_of(asked(better), gather(store, asked(better)))
    assert verdict_of(asked(even), gather(store, asked(even))).outcome != "pass"
    path = store.fetch(better) / HELD_OUT_FILE
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptArtifact, match=r"held_out.parquet: sha256"):
        recompute(store, report, better, GATE)


def test_the_verdicts_key_covers_the_held_out_pairs(
    store: Store, policy: Commit, asked: Callable[..., ReportRequest]
) -> None:
    request = asked(policy("p", pairs(0, 20, 0.7)))
    evidence = gather(store, request)
    other = replace(evidence, held_out={"policy": "0" * 64})
    assert verdict_of(request, evidence).key != verdict_of(request, other).key


def test_beside_the_champion_only_the_pairs_of_both_count_and_the_others_are_nobodys_failure(
    store: Store, policy: Commit, asked: Callable[..., ReportRequest]
) -> None:
    champion, candidate = policy("champion", pairs(0, 300, 0.7)), policy("candidate", pairs(60, 360, 0.95, seed=1))
    request = asked(candidate, champion)
    evidence = gather(store, request)
    assert evidence.against_champion is not None
    found = evidence.against_champion.suites["preferences"]["accuracy"]
    assert (found.n, found.missing, found.missing_candidate, found.missing_baseline) == (240, 120, 0, 0)
    assert found.missing_ids[0] == "row 0000"
    verdict = verdict_of(request, evidence)
    assert verdict.outcome == "pass", "a fifth of the champion's pairs is not held out any more"
    assert "n = 240 in 120 clusters, 120 left out" in verdict.checks[-1].seen


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (pairs(0, 300, 0.7, reference="another"), OTHER_REFERENCE),
        (pairs(400, 500, 0.7), NO_SHARED_PAIRS),
        ([], NO_PAIRS),
    ],
)
def test_a_champion_that_cannot_be_compared_is_named_and_leaves_the_gate_open(
    store: Store,
    policy: Commit,
    asked: Callable[..., ReportRequest],
    theirs: list[HeldOutPair],
    reason: str,
) -> None:
    request = asked(policy("candidate", pairs(0, 300, 0.7)), policy("champion", theirs))
    evidence = gather(store, request)
    assert evidence.against_champion is not None
    assert evidence.against_champion.left_out == {"preferences": reason}
    verdict = verdict_of(request, evidence)
    assert verdict.outcome == "inconclusive"
    assert reason in verdict.reasons[0] and "align promote --override" in verdict.reasons[0]


def test_a_policy_without_held_out_pairs_is_not_compared_by_them(
    store: Store,
    policy: Commit,
    asked: Callable[..., ReportRequest],
    commit_checkpoint: Callable[..., Artifact],
) -> None:
    champion = policy("champion", pairs(0, 10, 0.7))
    for candidate in (policy("none held out", []), commit_checkpoint("another method")):
        evidence = gather(store, asked(candidate, champion))
        assert evidence.against_champion is not None
        assert not evidence.against_sft.suites and not evidence.against_champion.suites
        assert not evidence.held_out and not evidence.against_champion.left_out
