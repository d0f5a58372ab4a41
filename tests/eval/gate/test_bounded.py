"""Bounds from above: answers and divergence by hand, and the verdicts on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.recipe import Gate, Requirement
from eval.answers.files import Response, write_responses
from eval.gate.bounded import answer_samples, answer_values, distinct
from eval.gate.compare import MetricComparison, compare_samples
from eval.gate.verdict import decide, verdict_key
from eval.suites.samples import Sample


def compared(before: list[float], after: list[float], suite: str = "answers", metric: str = "length") -> Any:
    def side(values: list[float]) -> list[Sample]:
        return [Sample(suite, str(place), str(place), metric, value, "") for place, value in enumerate(values)]

    return {suite: compare_samples(side(before), side(after), margin=None, ratio=True)}


def gate(metric: str, **requirement: float) -> Gate:
    return Gate(metrics={metric: Requirement(**requirement)})


def test_distinct_n_grams_are_counted_over_words_and_a_loop_has_few() -> None:
    assert distinct("a b a b a", 2) == 2 / 4
    assert distinct("the fox is here " * 50, 4) == 4 / 197
    assert distinct("one two three", 4) == distinct("", 2) == 1.0


def test_an_answer_has_ended_if_every_turn_is_shorter_than_the_limit() -> None:
    values = answer_values(Response("1", ("a b", "c d"), tokens=(3, 7)), 8)
    assert values == {"length": 10.0, "ended": 1.0, "distinct_2": 1.0, "distinct_4": 1.0}
    assert answer_values(Response("1", ("a", "b"), tokens=(3, 8)), 8)["ended"] == 0.0
    unknown = answer_values(Response("1", ("a",)), 8)
    assert unknown["length"] is None and unknown["ended"] is None


def test_answers_that_failed_have_no_values_and_log_likelihoods_are_no_answers(tmp_path: Path) -> None:
    (tmp_path / "generation.json").write_text(json.dumps({"max_new_tokens": 4}), encoding="utf-8")
    answers = [Response("1", ("x y",), tokens=(2,)), Response("2", (), failed="too long")]
    write_responses(tmp_path / "responses.jsonl", answers)
    samples = {(sample.id, sample.metric): sample.value for sample in answer_samples(tmp_path, "s")}
    assert samples["s/1", "length"] == 2.0 and samples["s/2", "length"] is None and len(samples) == 8
    (tmp_path / "generation.json").write_text(json.dumps({"log_likelihoods": True}), encoding="utf-8")
    assert not list(answer_samples(tmp_path, "s"))


@pytest.mark.parametrize(("mean", "expected"), [(9.0, "pass"), (10.0, "pass"), (11.0, "fail")])
def test_at_most_compares_the_candidates_own_mean(mean: float, expected: str) -> None:
    found = compared([0.0] * 10, [mean - 1, mean + 1] * 5, "policy_divergence", "kl")
    verdict = decide(found, None, gate("policy_divergence/kl", at_most=10), "k")
    assert verdict.outcome == expected
    assert verdict.reasons == [f"policy_divergence/kl: {mean:.2f}, n = 10; asked: at most 10.00"]


def test_at_most_of_what_was_not_measured_is_inconclusive() -> None:
    verdict = decide({}, None, gate("policy_divergence/kl", at_most=10), "k")
    assert (verdict.outcome, verdict.reasons) == (
        "inconclusive",
        ["policy_divergence/kl: not measured; asked: at most 10"],
    )


@pytest.mark.parametrize(
    ("factors", "expected"),
    [((1.0, 1.0), "pass"), ((1.2, 1.4), "pass"), ((2.9, 3.3), "fail"), ((0.5, 3.4), "inconclusive")],
)
def test_max_ratio_decides_by_the_interval_of_the_ratio(factors: tuple[float, float], expected: str) -> None:
    before = [10.0 + place % 5 for place in range(40)]
    after = [value * factors[place % 2] for place, value in enumerate(before)]
    verdict = decide(compared(before, after), None, gate("answers/length", max_ratio=2.0), "k")
    assert verdict.outcome == expected
    assert verdict.reasons[0].startswith("answers/length against the SFT baseline: ")
    assert verdict.reasons[0].endswith("asked: at most 2 times")


def test_the_ratios_interval_is_the_delta_methods() -> None:
    ratio = compared([1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 7.0, 8.0])["answers"]["length"].ratio
    assert ratio is not None and ratio.value == pytest.approx(2.0)
    # residuals 0, −1, 1, 0 over the mean 2.5: a standard deviation of √(2/3) / 2.5, over √4; t with 3 degrees 3.1824
    half = 3.182446305284263 * (2 / 3) ** 0.5 / 2.5 / 2
    assert (ratio.low, ratio.high) == (pytest.approx(2 - half), pytest.approx(2 + half))


def test_a_ratio_is_in_the_json_only_where_it_was_asked_for() -> None:
    samples = [Sample("s", str(place), str(place), "m", 1.0 + place, "") for place in range(4)]
    without = compare_samples(samples, samples)["m"]
    assert "ratio" not in without.model_dump(mode="json")
    again = MetricComparison.model_validate(compare_samples(samples, samples, ratio=True)["m"].model_dump(mode="json"))
    assert again.ratio is not None and again.ratio.value == 1.0


def test_a_bound_is_no_improvement_and_a_longer_answer_none_either() -> None:
    longer = compared([10.0 + place % 3 for place in range(40)], [15.0 + place % 3 for place in range(40)])
    asked = Gate(metrics={"answers/length": Requirement(max_ratio=2.0)}, any_improves=True)
    verdict = decide(longer, None, asked, "k")
    assert verdict.outcome == "inconclusive" and "any metric" in verdict.reasons[0]


def test_the_key_of_a_gate_without_bounds_is_what_it_was_before_there_were_any() -> None:
    key = verdict_key("s", "p", None, {"sft/x": "d"}, gate("s/m", no_regression=0.05))
    assert key == RECORDED_KEY
    assert verdict_key("s", "p", None, {"sft/x": "d"}, gate("s/m", at_most=0.05)) != key


RECORDED_KEY = "464364368886baaba9cf09bd8f0c3a1321b8294eeea061ebb7f1a09c179d658f"
