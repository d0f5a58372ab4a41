from __future__ import annotations

import pytest

from alignment.recipe import Gate, Requirement
from eval.compare import MetricComparison, compare_samples
from eval.decision import decide, verdict_key
from eval.samples import Sample


def compared(difference: float, spread: float = 0.1, n: int = 100) -> dict[str, dict[str, MetricComparison]]:
    """A suite `s` whose metric `m` differs by this much, with this much spread between items."""

    def side(shift: float, spread: float) -> list[Sample]:
        return [
            Sample("s", str(index), str(index), "m", 0.5 + shift + (spread if index % 2 else -spread), "")
            for index in range(n)
        ]

    return {"s": compare_samples(side(0.0, 0.0), side(difference, spread))}


def gate(**requirement: float) -> Gate:
    return Gate(metrics={"s/m": Requirement(**requirement)})


@pytest.mark.parametrize(
    ("difference", "spread", "expected"),
    [
        (0.0, 0.1, "pass"),
        (-0.02, 0.001, "pass"),
        (-0.2, 0.1, "fail"),
        (-0.05, 0.1, "inconclusive"),
        (0.0, 2.0, "inconclusive"),
    ],
)
def test_no_regression_passes_only_when_the_interval_lies_above_minus_the_margin(
    difference: float, spread: float, expected: str
) -> None:
    assert decide(compared(difference, spread), None, gate(no_regression=0.05), "k").outcome == expected


@pytest.mark.parametrize(
    ("difference", "threshold", "expected"),
    [(0.2, 0.0, "pass"), (0.2, 0.1, "pass"), (0.2, 0.19, "inconclusive"), (0.2, 0.4, "fail"), (-0.2, 0.0, "fail")],
)
def test_improve_passes_only_when_the_interval_lies_above_the_threshold(
    difference: float, threshold: float, expected: str
) -> None:
    assert decide(compared(difference), None, gate(improve=threshold), "k").outcome == expected


def test_equal_models_do_not_improve() -> None:
    assert decide(compared(0.0, 0.0), None, gate(improve=0.0), "k").outcome == "fail"
    assert decide(compared(0.0, 0.0), None, gate(no_regression=0.01), "k").outcome == "pass"


def test_at_least_looks_at_the_candidates_own_mean() -> None:
    assert decide(compared(0.1), None, gate(at_least=0.6), "k").outcome == "pass"
    assert decide(compared(0.1), None, gate(at_least=0.61), "k").outcome == "fail"


def test_the_champion_must_not_be_lost_to_either() -> None:
    better, worse = compared(0.3), compared(-0.3)
    verdict = decide(better, worse, gate(no_regression=0.02), "k")
    assert verdict.outcome == "fail"
    assert [check.against for check in verdict.checks] == ["sft", "champion"]
    assert "against the champion" in verdict.reasons[0] and len(verdict.reasons) == 1


def test_an_improvement_is_asked_of_the_sft_baseline_and_of_the_champion_only_that_it_is_kept() -> None:
    better, same, worse = compared(0.3), compared(0.0), compared(-0.3)
    assert decide(better, same, gate(improve=0.1), "k").outcome == "pass"
    assert decide(better, worse, gate(improve=0.1), "k").outcome == "fail"
    assert decide(same, better, gate(improve=0.1), "k").outcome == "fail"


@pytest.mark.parametrize("requirement", [{"no_regression": 0.5}, {"improve": 0.0}, {"at_least": 0.0}])
def test_what_was_not_measured_cannot_pass(requirement: dict[str, float]) -> None:
    verdict = decide({}, None, gate(**requirement), "k")
    assert verdict.outcome == "inconclusive" and "s/m: not measured" in verdict.reasons[0]
    if "at_least" not in requirement:
        assert decide(compared(0.3), {}, gate(**requirement), "k").outcome == "inconclusive"


def test_one_failure_outweighs_what_is_open_and_all_are_listed() -> None:
    settings = Gate(metrics={"s/m": Requirement(improve=0.9), "s/other": Requirement(improve=0.0)})
    verdict = decide(compared(0.1), None, settings, "k")
    assert (verdict.outcome, [check.outcome for check in verdict.checks]) == ("fail", ["fail", "inconclusive"])


def test_an_open_verdict_says_how_many_items_would_tell() -> None:
    verdict = decide(compared(0.01, 0.3, n=40), None, gate(no_regression=0.02), "k")
    (check,) = verdict.checks
    assert check.needed is not None and check.needed > 40
    assert f"about {check.needed} items would tell" in check.reason


def test_too_few_items_for_an_interval_are_inconclusive() -> None:
    assert decide(compared(0.3, n=1), None, gate(improve=0.0), "k").outcome == "inconclusive"


def test_without_a_gate_nothing_is_decided() -> None:
    assert decide(compared(0.3), None, None, "k").outcome == "none"


def test_the_key_covers_checkpoints_samples_and_settings() -> None:
    keys = {
        verdict_key("s", "p", None, {"sft/x": "1"}, gate(improve=0.0)),
        verdict_key("t", "p", None, {"sft/x": "1"}, gate(improve=0.0)),
        verdict_key("s", "q", None, {"sft/x": "1"}, gate(improve=0.0)),
        verdict_key("s", "p", "c", {"sft/x": "1"}, gate(improve=0.0)),
        verdict_key("s", "p", None, {"sft/x": "2"}, gate(improve=0.0)),
        verdict_key("s", "p", None, {"sft/x": "1"}, gate(improve=0.1)),
    }
    assert len(keys) == 6
