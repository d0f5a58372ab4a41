from __future__ import annotations

import random

import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm

from eval.statistics import (
    Interval,
    Mean,
    clustered_mean,
    mean_interval,
    repeats,
    share_difference,
    verdict,
    weighted_difference,
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
    found = mean_interval(clustered_mean(values, names))
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
    found = mean_interval(clustered_mean(differences, [str(index) for index in range(50)]))
    assert found.p_value == pytest.approx(oracle.pvalue)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_interval_covers_a_known_difference_in_95_of_100_draws() -> None:
    covered = 0
    for seed in range(1000):
        found = mean_interval(clustered_mean(*clustered_data(seed, 25)))
        assert found.low is not None and found.high is not None
        covered += found.low <= 0.0 <= found.high
    assert 930 <= covered <= 970


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0, 1.0]])
def test_a_single_cluster_has_a_mean_and_no_interval(values: list[float]) -> None:
    found = mean_interval(clustered_mean(values, ["a", "a"]))
    assert found.mean.value == sum(values) / 2
    assert (found.mean.stderr, found.low, found.p_value) == (None, None, None)
    assert verdict(found, margin=10) == "inconclusive"


def test_a_spread_of_zero_is_no_interval() -> None:
    found = mean_interval(clustered_mean([0.1] * 11, list("abcdefghijk")))
    assert found == Interval(found.mean, None, None, None)
    assert found.mean.stderr == 0.0


@pytest.mark.parametrize(
    ("shift", "margin", "expected"),
    [(1.0, 0.0, "improved"), (-1.0, 5.0, "regressed"), (0.0, 0.5, "equivalent"), (0.0, 0.01, "inconclusive")],
)
def test_the_verdict_follows_the_interval(shift: float, margin: float, expected: str) -> None:
    values = [shift + (0.3 if index % 2 else -0.3) for index in range(40)]
    assert verdict(mean_interval(clustered_mean(values, [str(i) for i in range(40)])), margin) == expected


def test_no_values_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no mean"):
        clustered_mean([], [])


def test_one_more_run_lies_where_nineteen_of_twenty_do() -> None:
    """Six thousand times five runs and a sixth, whose values are normal."""
    rng = np.random.default_rng(3)
    runs = rng.normal(0.7, 0.02, (6000, 6))
    hits = [repeats(list(five)).has(float(sixth)) for *five, sixth in runs.tolist()]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.01)
    assert repeats([1.0]).has(1.0) is None


def test_of_equal_runs_nobody_knows_where_one_more_lies() -> None:
    """Two runs of 50 items at an accuracy of 0.99 are equal in 47 of 100 cases; a third is then often another."""
    same = repeats([0.98, 0.98])
    assert (same.deviation, same.low, same.high) == (0.0, None, None)
    assert same.has(0.98) is None and same.has(1.0) is None
    assert sum(scipy.stats.binom.pmf(hits, 50, 0.99) ** 2 for hits in range(51)) == pytest.approx(0.47, abs=0.005)


def test_the_difference_of_two_shares_is_newcombes() -> None:
    """Newcombe (1998), table II, method 10, contrasts a and f: 56/70 with 48/80, and 10/10 with 0/10."""

    def share(hits: int, items: int) -> Mean:
        return clustered_mean([float(n < hits) for n in range(items)], [str(n) for n in range(items)])

    found = share_difference(share(48, 80), share(56, 70))
    assert (found.mean.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=2e-3)
    certain = share_difference(share(0, 10), share(10, 10))
    assert (certain.low, certain.high) == pytest.approx((0.6075, 1.0), abs=1e-4)


def test_a_weighted_difference_of_one_part_is_its_difference_and_one_that_is_sure_adds_no_width() -> None:
    def share(hits: int, of: int) -> Mean:
        return Mean(hits / of, None, of, of)

    alone, one = share_difference(share(48, 80), share(56, 70)), (share(48, 80), share(56, 70))
    found = weighted_difference([(1.0, *one)])
    assert (found.mean, found.low, found.high) == (alone.mean, pytest.approx(alone.low), pytest.approx(alone.high))
    sure = share(500_000, 1_000_000)
    half = weighted_difference([(0.5, *one), (0.5, sure, sure)])
    assert alone.low is not None and half.low is not None
    assert (half.mean.value, half.low) == pytest.approx((alone.mean.value / 2, alone.low / 2), abs=1e-3)


def test_a_weighted_difference_contains_the_true_one_in_nineteen_of_twenty_draws() -> None:
    """Few items, shares near one, and a mix that differs from that of the pooled items."""
    rng = np.random.default_rng(3)
    first, second, weights = [0.95, 0.6], [0.9, 0.6], [0.2, 0.8]
    true = sum(weight * (after - before) for weight, before, after in zip(weights, first, second, strict=True))

    def drawn(rate: float, of: int) -> Mean:
        return Mean(rng.binomial(of, rate) / of, None, of, of)

    inside = 0
    for _ in range(1000):
        parts = [(w, drawn(p, 60), drawn(q, 25)) for w, p, q in zip(weights, first, second, strict=True)]
        found = weighted_difference(parts)
        assert found.low is not None and found.high is not None
        inside += found.low <= true <= found.high
    assert 935 <= inside <= 985
