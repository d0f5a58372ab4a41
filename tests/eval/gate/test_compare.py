from __future__ import annotations

import pytest
import scipy.stats

from alignment.errors import BadInput
from eval.gate.compare import MetricComparison, OwnMean, compare_samples
from eval.suites.samples import Sample


def samples(values: dict[str, float | None], metric: str = "m", suite: str = "s") -> list[Sample]:
    return [Sample(suite, name, name.split(":")[0], metric, value, "text") for name, value in values.items()]


def test_the_difference_is_over_the_items_that_both_sides_have() -> None:
    found = compare_samples(
        samples({"a": 0.0, "b": 1.0, "c": 0.0, "d": None}), samples({"a": 1.0, "b": 1.0, "d": 1.0, "e": 0.0})
    )["m"]
    assert (found.n, found.baseline, found.candidate, found.difference) == (2, 0.5, 1.0, 0.5)
    assert (found.gained, found.lost) == (1, 0)
    assert (found.missing, found.missing_ids) == (3, ["c", "d", "e"])
    assert found.own_of("baseline") == OwnMean(mean=1 / 3, n=3, asked=5)
    assert found.own_of("candidate") == OwnMean(mean=0.75, n=4, asked=5)
    assert MetricComparison.model_validate_json(found.model_dump_json()) == found


def test_rows_of_one_cluster_count_as_one_cluster() -> None:
    before = samples({"a:0": 0.0, "a:1": 0.0, "b:0": 0.0, "c:0": 1.0})
    after = samples({"a:0": 1.0, "a:1": 1.0, "b:0": 0.0, "c:0": 1.0})
    found = compare_samples(before, after)["m"]
    assert (found.n, found.clusters) == (4, 3)


def test_what_is_missing_is_told_by_the_side_that_lacks_it() -> None:
    found = compare_samples(
        samples({"a": 0.0, "b": 1.0, "c": 0.0, "d": None, "x": None}),
        samples({"a": 1.0, "b": None, "d": 1.0, "x": None}),
    )["m"]
    assert (found.missing, found.missing_baseline, found.missing_candidate) == (4, 1, 2)


def test_models_that_agree_on_every_item_differ_by_no_more_than_their_number_allows() -> None:
    same = samples({str(number): float(number % 2) for number in range(250)})
    found = compare_samples(same, same, margin=0.02)["m"]
    assert (found.difference, found.stderr, found.p_value, found.verdict) == (0.0, 0.0, 1.0, "equivalent")
    assert found.ci95 == pytest.approx((-0.01513, 0.01513), abs=1e-5)
    assert found.minimum_detectable_effect == pytest.approx(0.02163, abs=1e-5)
    assert compare_samples(same[:50], same[:50], margin=0.02)["m"].verdict == "inconclusive"


def test_a_metric_without_an_end_to_its_scale_needs_a_spread_for_an_interval() -> None:
    same = samples({"a": 12.0, "b": 40.0, "c": 8.0})
    found = compare_samples(same, same)["m"]
    assert (found.width, found.ci95, found.minimum_detectable_effect, found.verdict) == (
        None,
        None,
        None,
        "inconclusive",
    )


@pytest.mark.parametrize(
    ("suite", "metric", "width"),
    [
        ("mt_bench", "average", 9.0),
        ("mt_bench", "win_rate", 1.0),
        ("mt_bench", "words", None),
        ("arena_hard", "score", 1.0),
        ("alpaca_eval", "length_controlled_win_rate", 1.0),
        ("arc", "acc,none", 1.0),
    ],
)
def test_a_metric_lies_on_its_own_scale_or_its_suites(suite: str, metric: str, width: float | None) -> None:
    some = samples({"a": 1.0, "b": 0.7}, metric, suite=suite)
    assert compare_samples(some, some)[metric].width == width


@pytest.mark.parametrize(("suite", "metric"), [("arena_hard", "score"), ("alpaca_eval", "length_controlled_win_rate")])
def test_linearised_values_may_leave_the_scale_and_take_the_t_interval(suite: str, metric: str) -> None:
    before = samples({str(n): 0.4 for n in range(40)}, metric, suite)
    after = samples({str(n): 0.5 for n in range(36)} | {str(n): 1.9 - n % 2 * 3 for n in range(36, 40)}, metric, suite)
    found = compare_samples(before, after, margin=None)[metric]
    differences = [a.value - b.value for b, a in zip(before, after, strict=True)]  # type: ignore[operator]
    oracle = scipy.stats.ttest_1samp(differences, 0.0)
    assert max(map(abs, differences)) > 1.0 and found.width == 1.0 and found.shares is None
    assert found.ci95 == pytest.approx(tuple(oracle.confidence_interval()))
    assert found.p_value == pytest.approx(oracle.pvalue)


def test_mcnemar_is_told_for_right_or_wrong_items_that_stand_alone() -> None:
    before = samples({str(n): 0.0 for n in range(12)})
    after = samples({str(n): float(n < 9) for n in range(12)})
    assert compare_samples(before, after)["m"].p_mcnemar == pytest.approx(2 / 2**9)
    graded = samples({"a": 0.5, "b": 1.0, "c": 0.0})
    assert compare_samples(graded, graded)["m"].p_mcnemar is None
    clustered = samples({"a:0": 0.0, "a:1": 1.0, "b": 1.0})
    assert compare_samples(clustered, clustered)["m"].p_mcnemar is None


@pytest.mark.parametrize("field", ["ci95", "p_value", "verdict", "bootstrap_ci95"])
def test_the_same_items_give_the_same_comparison_in_any_order(field: str) -> None:
    before = samples({str(n): float(n % 3 == 0) for n in range(60)})
    after = samples({str(n): float(n % 2 == 0) for n in range(60)})
    once = compare_samples(before, after)["m"]
    again = compare_samples(before[::-1], after[::-1])["m"]
    assert getattr(again, field) == pytest.approx(getattr(once, field))


def test_all_common_metrics_are_compared_unless_one_is_asked_for() -> None:
    before = samples({"a": 0.0, "b": 1.0}, "x") + samples({"a": 0.0, "b": 1.0}, "y")
    after = samples({"a": 0.0, "b": 1.0}, "y") + samples({"a": 0.0, "b": 1.0}, "x")
    assert list(compare_samples(before, after)) == ["y", "x"]
    assert list(compare_samples(before, after, metric="x")) == ["x"]


@pytest.mark.parametrize(
    ("before", "after", "metric", "words"),
    [
        (samples({"a": 0.0}) * 2, samples({"a": 0.0}), None, "baseline has item a twice"),
        (samples({"a": 0.0}), samples({"b": 0.0}), None, "no item of m"),
        (samples({"a": 0.0}), samples({"a": 0.0}), "z", "no metric 'z'; it has m"),
        (samples({"a": 0.0}, "x"), samples({"a": 0.0}, "y"), None, "no metric in common"),
        (samples({"a": 0.0}, suite="s"), samples({"a": 0.0}, suite="t"), None, "different suites: s, t"),
        (samples({"a": 0.0}), [Sample("s", "a", "other", "m", 0.0, "")], None, "item a of m is in cluster"),
        (samples({"a": 0.0}), [], None, "no metric in common"),
    ],
)
def test_what_cannot_be_compared_is_named(
    before: list[Sample], after: list[Sample], metric: str | None, words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        compare_samples(before, after, metric)
