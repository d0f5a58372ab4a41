from __future__ import annotations

import random

import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm

from eval.statistics import (
    clustered_mean,
    clusters_needed,
    interval,
    minimum_detectable_effect,
    verdict,
)


def clustered_data(seed: int, clusters: int, spread: float = 1.0) -> tuple[list[float], list[str]]:
    rng = random.Random(seed)
    values, names = [], []
    for cluster in range(clusters):
        shift = rng.gauss(0, spread)
        for _ in range(rng.randint(1, 4)):
            values.append(shift + rng.gauss(0, 1))
            names.append(f"c{cluster}")
    return values, names


@pytest.mark.parametrize("clusters", [3, 17, 200])
def test_clustered_standard_error_interval_and_p_value_equal_statsmodels(clusters: int) -> None:
    values, names = clustered_data(clusters, clusters)
    groups = np.unique(names, return_inverse=True)[1]
    fit = sm.OLS(np.array(values), np.ones(len(values))).fit(
        cov_type="cluster", cov_kwds={"groups": groups}, use_t=True
    )
    found = interval(clustered_mean(values, names))
    assert found.mean.value == pytest.approx(fit.params[0], rel=1e-12)
    assert found.mean.stderr == pytest.approx(fit.bse[0], rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int()[0]), rel=1e-9)
    assert found.p_value == pytest.approx(fit.pvalues[0], rel=1e-7)


def test_one_item_a_cluster_is_the_paired_t_test() -> None:
    rng = random.Random(1)
    before = [rng.random() for _ in range(50)]
    after = [value + rng.gauss(0.1, 0.3) for value in before]
    oracle = scipy.stats.ttest_rel(after, before)
    low, high = oracle.confidence_interval()
    differences = [a - b for a, b in zip(after, before, strict=True)]
    found = interval(clustered_mean(differences, [str(index) for index in range(50)]))
    assert found.p_value == pytest.approx(oracle.pvalue)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_interval_covers_a_known_difference_in_95_of_100_draws() -> None:
    covered = 0
    for seed in range(1000):
        found = interval(clustered_mean(*clustered_data(seed, 25)))
        assert found.low is not None and found.high is not None
        covered += found.low <= 0.0 <= found.high
    assert 930 <= covered <= 970


def test_the_minimum_detectable_effect_is_found_four_times_in_five() -> None:
    stderr = 0.3
    effect = minimum_detectable_effect(stderr)
    power = 1 - scipy.stats.norm.cdf(scipy.stats.norm.ppf(0.975) - effect / stderr)
    assert power == pytest.approx(0.8, abs=1e-6)


def test_a_single_cluster_has_a_mean_and_no_interval() -> None:
    found = interval(clustered_mean([1.0, 2.0], ["a", "a"]))
    assert found.mean.value == 1.5
    assert (found.mean.stderr, found.low, found.p_value) == (None, None, None)
    assert verdict(found, margin=10) == "inconclusive"


def test_equal_models_differ_by_nothing_for_sure() -> None:
    found = interval(clustered_mean([0.0] * 9, list("abcdefghi")))
    assert (found.low, found.high, found.p_value) == (0.0, 0.0, 1.0)
    assert verdict(found) == "equivalent"


@pytest.mark.parametrize(
    ("shift", "margin", "expected"),
    [(1.0, 0.0, "improved"), (-1.0, 5.0, "regressed"), (0.0, 0.5, "equivalent"), (0.0, 0.01, "inconclusive")],
)
def test_the_verdict_follows_the_interval(shift: float, margin: float, expected: str) -> None:
    values = [shift + (0.3 if index % 2 else -0.3) for index in range(40)]
    assert verdict(interval(clustered_mean(values, [str(i) for i in range(40)])), margin) == expected


def test_as_many_clusters_as_are_said_to_be_needed_make_the_effect_detectable() -> None:
    values = [0.1 + (0.5 if index % 2 else -0.5) for index in range(30)]
    found = interval(clustered_mean(values, [str(index) for index in range(30)]))
    needed = clusters_needed(found, threshold=-0.02)
    assert needed is not None and needed > 30 and found.mean.stderr is not None
    assert minimum_detectable_effect(found.mean.stderr * (30 / needed) ** 0.5) <= 0.12
    assert clusters_needed(found, threshold=found.mean.value) is None
    assert clusters_needed(interval(clustered_mean([0.0] * 3, list("abc"))), threshold=0.1) is None


def test_no_values_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no mean"):
        clustered_mean([], [])
