from __future__ import annotations

import pytest

from alignment.errors import BadInput
from eval.compare import compare_samples
from eval.samples import Sample


def samples(values: dict[str, float | None], metric: str = "m", suite: str = "s") -> list[Sample]:
    return [Sample(suite, name, name.split(":")[0], metric, value, "text") for name, value in values.items()]


def test_the_difference_is_over_the_items_that_both_sides_have() -> None:
    found = compare_samples(
        samples({"a": 0.0, "b": 1.0, "c": 0.0, "d": None}), samples({"a": 1.0, "b": 1.0, "d": 1.0, "e": 0.0})
    )["m"]
    assert (found.n, found.baseline, found.candidate, found.difference) == (2, 0.5, 1.0, 0.5)
    assert (found.gained, found.lost) == (1, 0)
    assert (found.missing, found.missing_ids) == (3, ["c", "d", "e"])


def test_rows_of_one_cluster_count_as_one_cluster() -> None:
    before = samples({"a:0": 0.0, "a:1": 0.0, "b:0": 0.0, "c:0": 1.0})
    after = samples({"a:0": 1.0, "a:1": 1.0, "b:0": 0.0, "c:0": 1.0})
    found = compare_samples(before, after)["m"]
    assert (found.n, found.clusters) == (4, 3)


def test_differences_without_spread_say_nothing_of_a_smallest_detectable_effect() -> None:
    found = compare_samples(samples({"a": 0.0, "b": 1.0}), samples({"a": 0.0, "b": 1.0}))["m"]
    assert (found.stderr, found.ci95, found.minimum_detectable_effect) == (0.0, (0.0, 0.0), None)


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
