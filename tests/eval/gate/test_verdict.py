from __future__ import annotations

import pytest

from alignment.recipe import Gate, Requirement
from eval.gate.compare import MetricComparison, compare_samples
from eval.gate.requirement import Against
from eval.gate.verdict import decide, verdict_key
from eval.suites.samples import Sample


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


def right_or_wrong(gained: int, lost: int, n: int, suite: str = "s") -> dict[str, dict[str, MetricComparison]]:
    """A suite of right-or-wrong items of which this many were gained and lost."""

    def side(values: list[float]) -> list[Sample]:
        return [Sample(suite, str(index), str(index), "m", value, "") for index, value in enumerate(values)]

    kept = n - gained - lost
    return {
        suite: compare_samples(
            side([0.0] * gained + [1.0] * lost + [1.0] * kept), side([1.0] * gained + [0.0] * lost + [1.0] * kept)
        )
    }


def test_equal_models_pass_where_their_number_can_tell() -> None:
    assert decide(right_or_wrong(0, 0, 250), None, gate(no_regression=0.02), "k").outcome == "pass"
    few = decide(right_or_wrong(0, 0, 100), None, gate(no_regression=0.02), "k")
    assert few.outcome == "inconclusive"
    assert few.checks[0].needed == 189 and "about 189 items would tell" in few.reasons[0]
    assert decide(right_or_wrong(0, 0, 250), None, gate(improve=0.0), "k").outcome == "inconclusive"
    assert decide(right_or_wrong(0, 0, 250), None, gate(improve=0.1), "k").outcome == "fail"


@pytest.mark.parametrize(
    ("gained", "lost", "expected"),
    [(0, 0, "pass"), (3, 3, "pass"), (6, 6, "pass"), (0, 4, "pass"), (2, 12, "inconclusive")],
)
def test_a_nights_nearly_identical_candidate_passes_beside_the_champion(gained: int, lost: int, expected: str) -> None:
    night = right_or_wrong(gained, lost, 250)
    assert decide(right_or_wrong(180, 2, 250), night, gate(improve=0.1), "k").outcome == expected


def test_what_is_open_against_the_champion_does_not_pass_and_a_margin_of_its_own_can_be_given() -> None:
    better, open_ = right_or_wrong(200, 0, 250), right_or_wrong(25, 25, 250)
    verdict = decide(better, open_, gate(improve=0.1), "k")
    assert (verdict.outcome, [check.outcome for check in verdict.checks]) == ("inconclusive", ["pass", "inconclusive"])
    assert verdict.reasons[0].startswith("s/m against the champion: 0.0 percentage points (95 % interval −")
    assert verdict.reasons[0].endswith("asked: more than −5.0")
    assert decide(better, open_, gate(improve=0.1, champion_margin=0.06), "k").outcome == "pass"
    assert decide(better, open_, gate(no_regression=0.06, champion_margin=0.01), "k").outcome == "inconclusive"


def test_a_champion_margin_has_to_be_given_where_the_scale_has_no_end() -> None:
    assert compared(0.3)["s"]["m"].width is None
    verdict = decide(compared(0.3), compared(0.3), gate(improve=0.1), "k")
    assert verdict.outcome == "inconclusive" and "champion_margin" in verdict.reasons[0]


@pytest.mark.parametrize(("baseline", "name"), [("base", "the base model"), ("adopted", "the adopted model")])
def test_a_policy_is_compared_with_where_it_started_by_name(baseline: Against, name: str) -> None:
    asked = Gate(metrics={"s/m": Requirement(no_regression=0.05), "s/n": Requirement(max_ratio=2.0)}, any_improves=True)
    for found in (compared(0.2), {}):
        sft, other = decide(found, None, asked, "k"), decide(found, None, asked, "k", baseline=baseline)
        assert {check.against for check in other.checks} == {baseline} and other.outcome == sft.outcome
        assert [reason.replace("the SFT baseline", name) for reason in sft.reasons] == other.reasons
        assert all(f"against {name}: " in reason for reason in other.reasons)


def test_several_improvements_are_claimed_together_by_holms_correction() -> None:
    weak = right_or_wrong(12, 4, 250)["s"]["m"]
    assert weak.ci95 is not None and weak.ci95[0] > 0 and weak.p_value is not None and weak.p_value > 0.0125
    strong = right_or_wrong(90, 2, 250)["s"]["m"]
    one = Gate(metrics={"s/weak": Requirement(improve=0.0)})
    three = Gate(metrics={f"s/{name}": Requirement(improve=0.0) for name in ("weak", "also_weak", "strong")})
    comparisons = {"s": {"weak": weak, "also_weak": weak, "strong": strong}}
    assert decide(comparisons, None, one, "k").outcome == "pass"
    verdict = decide(comparisons, None, three, "k")
    assert [check.outcome for check in verdict.checks] == ["inconclusive", "inconclusive", "pass"]
    assert "corrected for 3 claims" in verdict.reasons[0]


def test_any_improvement_is_looked_for_in_all_metrics_and_corrected_for_that() -> None:
    same, weak, strong = (right_or_wrong(*counts, 250)["s"]["m"] for counts in ((0, 0), (12, 4), (90, 2)))
    worse = right_or_wrong(0, 60, 250)["s"]["m"]
    asked = Gate(metrics={f"s/{name}": Requirement(no_regression=1.0) for name in "abc"}, any_improves=True)

    def outcome(*found: MetricComparison) -> tuple[str, str]:
        verdict = decide({"s": dict(zip("abc", found, strict=False))}, None, asked, "k")
        return verdict.checks[-1].outcome, verdict.checks[-1].seen

    assert outcome(same, strong, weak) == ("pass", "better: s/b")
    assert outcome(same, same, weak)[0] == "inconclusive"
    assert outcome(worse, worse, worse)[0] == "fail"
    assert outcome() == ("inconclusive", "none was measured")

    won = {"preferences": {"accuracy": strong}, "s": {"a": same}}
    both = Gate(
        metrics={"s/a": Requirement(no_regression=1.0), "preferences/accuracy": Requirement(at_least=0.1)},
        any_improves=True,
    )
    assert decide(won, None, both, "k").checks[-1].outcome == "inconclusive", "it was trained to win those"


def test_what_was_left_out_is_said_beside_the_number_of_items() -> None:
    def side(values: list[float | None]) -> list[Sample]:
        return [Sample("s", str(index), str(index), "m", value, "") for index, value in enumerate(values)]

    found = {"s": compare_samples(side([0.0] * 60 + [1.0] * 40), side([1.0] * 90 + [None] * 10))}
    (check,) = decide(found, None, gate(improve=0.1), "k").checks
    assert "n = 90, 10 left out (10 lacking in the candidate alone)" in check.seen


def lacking(candidate: int, both: int = 0, n: int = 200, baseline: int = 0) -> dict[str, dict[str, MetricComparison]]:
    """All items gained; one side alone lacks this many of `n`, and both sides that many more."""

    def side(value: float, first: int, last: int) -> list[Sample]:
        values = [None if index < first or index >= n - last else value for index in range(n + both)]
        return [Sample("s", str(index), str(index), "m", one, "") for index, one in enumerate(values)]

    return {"s": compare_samples(side(0.0, 0, baseline), side(1.0, candidate, 0))}


@pytest.mark.parametrize("requirement", [{"no_regression": 0.05}, {"improve": 0.1}, {"at_least": 0.5}])
def test_what_the_candidate_alone_failed_on_leaves_a_metric_open(requirement: dict[str, float]) -> None:
    asked = gate(**requirement)
    assert decide(lacking(4), None, asked, "k").outcome == "pass"
    verdict = decide(lacking(5), None, asked, "k")
    assert verdict.outcome == "inconclusive"
    of = "it was asked for" if "at_least" in requirement else "that the SFT baseline has"
    assert f"the candidate lacks 5 of the 200 values {of} (2.5 %, and max_missing is 2.0 %)" in verdict.reasons[0]
    assert decide(lacking(5), None, asked.model_copy(update={"max_missing": 0.03}), "k").outcome == "pass"
    if "at_least" not in requirement:
        beside = decide(lacking(0), lacking(5), asked, "k")
        assert beside.outcome == "inconclusive" and "that the champion has" in beside.reasons[0]


@pytest.mark.parametrize("requirement", [{"no_regression": 0.05}, {"improve": 0.1}])
def test_what_a_baseline_alone_failed_on_leaves_a_comparison_open(requirement: dict[str, float]) -> None:
    asked = gate(**requirement)
    assert decide(lacking(0, baseline=4), None, asked, "k").outcome == "pass"
    verdict = decide(lacking(0, baseline=5), None, asked, "k")
    assert verdict.outcome == "inconclusive"
    told = "the SFT baseline lacks 5 of the 200 values that the candidate has (2.5 %, and max_missing is 2.0 %)"
    assert told in verdict.reasons[0]
    assert decide(lacking(0, baseline=5), None, asked.model_copy(update={"max_missing": 0.03}), "k").outcome == "pass"
    beside = decide(lacking(0), lacking(0, baseline=5), asked, "k")
    assert beside.outcome == "inconclusive" and "; the champion lacks 5 of the 200 values" in beside.reasons[0]


def test_both_sides_are_named_where_each_alone_failed_on_too_much() -> None:
    (reason,) = decide(lacking(10, baseline=10), None, gate(no_regression=0.05), "k").reasons
    assert "the candidate lacks 10 of the 190 values that the SFT baseline has" in reason
    assert ", and the SFT baseline lacks 10 of the 190 values that the candidate has" in reason


def chosen_items() -> dict[str, dict[str, MetricComparison]]:
    """A baseline measured on 40 items of 100; the candidate has 9.0 there and 1.0 elsewhere."""

    def side(values: list[float | None]) -> list[Sample]:
        return [Sample("s", str(index), str(index), "m", value, "") for index, value in enumerate(values)]

    before = [5.0 + index % 2 for index in range(40)]
    return {"s": compare_samples(side([*before, *[None] * 60]), side([9.0] * 40 + [1.0] * 60))}


def test_no_verdict_rests_on_the_items_that_the_baseline_happens_to_have() -> None:
    own = decide(chosen_items(), None, gate(at_least=7.0), "k")
    assert (own.outcome, own.reasons) == ("fail", ["s/m: 4.20, n = 100; asked: at least 7.00"])
    assert decide(chosen_items(), None, gate(at_least=4.2), "k").outcome == "pass"
    verdict = decide(chosen_items(), None, gate(no_regression=0.5), "k")
    assert verdict.outcome == "inconclusive" and "lacks 60 of the 100 values that the candidate" in verdict.reasons[0]
    champion = decide(right_or_wrong(90, 0, 250), chosen_items(), gate(no_regression=0.5), "k")
    assert champion.outcome == "inconclusive"


def test_no_improvement_is_claimed_on_a_metric_that_one_side_lacks_too_much_of() -> None:
    asked = Gate(metrics={"s/m": Requirement(at_least=0.0)}, any_improves=True)
    assert decide(lacking(0), None, asked, "k").outcome == "pass"
    for incomplete in (chosen_items(), lacking(10, baseline=1), lacking(1, baseline=10)):
        check = decide(incomplete, None, asked, "k").checks[-1]
        assert (check.metric, check.outcome) == ("any metric", "inconclusive")
        assert "none that was measured whole is; s/m: the " in check.seen and "max_missing is 2.0 %" in check.seen


def test_items_that_both_sides_failed_on_hold_no_comparison_open() -> None:
    assert decide(lacking(0, both=100), None, gate(improve=0.1), "k").outcome == "pass"
    own = decide(lacking(0, both=100), None, gate(at_least=0.5), "k")
    assert own.outcome == "inconclusive" and "lacks 100 of the 300 values it was asked for" in own.reasons[0]


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
    better, same, worse = right_or_wrong(200, 0, 250), right_or_wrong(1, 1, 250), right_or_wrong(0, 80, 250)
    assert decide(better, same, gate(improve=0.1), "k").outcome == "pass"
    assert decide(better, worse, gate(improve=0.1), "k").outcome == "fail"
    assert decide(same, better, gate(improve=0.1), "k").outcome == "fail"


@pytest.mark.parametrize("requirement", [{"no_regression": 0.5}, {"improve": 0.0}, {"at_least": 0.0}])
def test_what_was_not_measured_cannot_pass(requirement: dict[str, float]) -> None:
    verdict = decide({}, None, gate(**requirement), "k")
    assert verdict.outcome == "inconclusive" and "not measured" in verdict.reasons[0]
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
    assert f"about {check.needed} items would tell" in check.reason and check.seen in check.reason


def test_too_few_items_for_an_interval_are_inconclusive() -> None:
    verdict = decide(compared(0.3, n=1), None, gate(improve=0.0), "k")
    assert verdict.outcome == "inconclusive" and "no interval from n = 1: one cluster alone" in verdict.reasons[0]


def test_no_difference_on_a_scale_without_ends_is_inconclusive_and_says_why() -> None:
    samples = [Sample("s", str(index), str(index), "m", 0.25 * index, "") for index in range(100)]
    verdict = decide({"s": compare_samples(samples, samples)}, None, gate(no_regression=0.1), "k")
    assert verdict.outcome == "inconclusive"
    assert (
        "no interval from n = 100: all differ by the same, and this metric's values have no bound"
        in (verdict.reasons[0])
    )


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
