"""The guards of an evaluation: each with comparisons that trip it, and ones that do not."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.guards import Guard
from eval.gate.compare import compare_samples
from eval.report.guards import evaluation_findings
from eval.suites.samples import Sample
from eval.summaries import ScoresSummary


def compared(suite: str, metric: str, before: list[float], after: list[float]) -> Any:
    def side(values: list[float]) -> list[Sample]:
        return [Sample(suite, str(place), str(place), metric, value, "") for place, value in enumerate(values)]

    return {suite: {metric: compare_samples(side(before), side(after), margin=None, ratio=True)[metric]}}


def found(bounded: Any, name: str) -> Guard:
    return {guard.name: guard for guard in evaluation_findings("pass", [], bounded, {})}[name]


FLAT = [10.0 + place % 4 for place in range(40)]
ENDS = [1.0] * 36 + [0.0] * 4


@pytest.mark.parametrize(
    ("name", "suite", "metric", "before", "after", "passed", "sentence"),
    [
        (
            "answer_length",
            "answers",
            "length",
            FLAT,
            [2.5 * value for value in FLAT],
            False,
            "answers are 2.5 times as long as the start checkpoint's: 11.5 → 28.8 tokens",
        ),
        ("answer_length", "answers", "length", FLAT, FLAT, True, "answers are 1 times as long"),
        (
            "answer_endings",
            "answers",
            "ended",
            ENDS,
            [1.0] * 16 + [0.0] * 24,
            False,
            "answers that end by themselves: 90.0 % → 40.0 % (95 % interval −",
        ),
        ("answer_endings", "answers", "ended", ENDS, ENDS, True, "answers that end by themselves: 90.0 % → 90.0 %"),
        (
            "repetition",
            "answers",
            "distinct_4",
            [0.9 + place % 3 / 100 for place in range(40)],
            [0.3 + place % 5 / 100 for place in range(40)],
            False,
            "distinct n-grams of an answer: 91.0 % → 32.0 % (95 % interval −",
        ),
        ("repetition", "answers", "distinct_4", [0.9] * 40, [0.9] * 40, True, "distinct n-grams of an answer: 90.0 %"),
        (
            "divergence",
            "policy_divergence",
            "kl",
            [0.0] * 4,
            [11.0, 12.0, 13.0, 12.0],
            False,
            "KL(policy ‖ start) is 12 nats a response (95 % interval ",
        ),
        ("divergence", "policy_divergence", "kl", [0.0] * 4, [1.0, 2.0, 3.0, 2.0], True, "KL(policy ‖ start) is 2 "),
    ],
)
def test_a_guard_of_answers_or_divergence(
    name: str, suite: str, metric: str, before: list[float], after: list[float], passed: bool, sentence: str
) -> None:
    guard = found(compared(suite, metric, before, after), name)
    assert guard.passed is passed and guard.sentence.startswith(sentence), guard.sentence


@pytest.mark.parametrize(
    ("outcome", "passed", "severity"),
    [
        ("pass", True, "warning"),
        ("none", True, "warning"),
        ("inconclusive", False, "warning"),
        ("fail", False, "error"),
    ],
)
def test_the_gates_verdict_is_a_guard(outcome: str, passed: bool, severity: str) -> None:
    (guard, _) = evaluation_findings(outcome, ["s/m: worse", "s/n: worse"], {}, {})
    assert guard == Guard("gate", passed, f"{outcome}: s/m: worse; s/n: worse", {}, severity)  # type: ignore[arg-type]


def test_answers_and_judgments_that_are_missing_are_named_by_suite_and_side() -> None:
    def missing(failed: int, unjudged: int) -> Guard:
        sides = {"SFT": {"ifeval": ScoresSummary(n=100)}, "policy": {"ifeval": ScoresSummary(n=95, failed=failed)}}
        sides["policy"]["mt_bench"] = ScoresSummary(n=80, unjudged=unjudged)
        return evaluation_findings("none", [], {}, sides)[1]

    assert missing(1, 1) == Guard(
        "answers_missing",
        True,
        "2 answers or judgments are missing",
        {"SFT/ifeval": 0, "policy/ifeval": 1, "policy/mt_bench": 1},
    )
    red = missing(5, 3)
    assert not red.passed
    assert red.sentence == "IFEval, policy: 5 items failed of 100; MT-Bench, policy: 3 answers without a judgment of 83"
