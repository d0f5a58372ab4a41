"""McNemar, Holm, bootstrap and win rate, each against scipy or statsmodels on the same numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from eval.statistics import bootstrap_interval, holm, mcnemar_exact, win_rate


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (4, 0), (3, 3), (293, 64), (1, 9), (10, 11)])
def test_mcnemar_is_that_of_statsmodels(gained: int, lost: int) -> None:
    assert mcnemar_exact(gained, lost) == pytest.approx(mcnemar([[5, lost], [gained, 7]], exact=True).pvalue)


def test_counts_are_not_negative() -> None:
    with pytest.raises(ValueError, match="not counts"):
        mcnemar_exact(-1, 2)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    adjusted = holm(dict(enumerate(p_values)))
    assert list(adjusted) == list(range(len(p_values)))
    assert list(adjusted.values()) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_holm_of_nothing_is_nothing() -> None:
    assert holm({}) == {}


def test_the_bootstrap_interval_is_scipys_bca() -> None:
    rng = random.Random(0)
    values = [rng.expovariate(1.0) for _ in range(80)]
    names = [str(index) for index in range(80)]
    oracle = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, rng=1).confidence_interval
    found = bootstrap_interval(values, names, resamples=20_000)
    assert found == pytest.approx((oracle.low, oracle.high), abs=0.02 * (oracle.high - oracle.low))
    assert found == bootstrap_interval(values, names, resamples=20_000)
    assert found != bootstrap_interval(values, names, seed=1, resamples=20_000)


def test_the_bootstrap_draws_whole_clusters() -> None:
    rng = random.Random(1)
    values = [rng.gauss(0, 1) for _ in range(40)]
    alone = bootstrap_interval(values, [str(index) for index in range(40)])
    together = bootstrap_interval([v for v in values for _ in range(5)], [str(i // 5) for i in range(200)])
    assert together == pytest.approx(alone)


def test_the_bootstrap_covers_a_known_difference_in_93_to_97_of_100_draws() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        shifts = np.repeat(generator.normal(0, 1, 80), 2)
        found = bootstrap_interval((shifts + generator.normal(0, 1, 160)).tolist(), [str(i // 2) for i in range(160)])
        assert found is not None
        covered += found[0] <= 0.0 <= found[1]
    assert 372 <= covered <= 388


@pytest.mark.parametrize(("values", "clusters"), [([1.0, 2.0], ["a", "a"]), ([0.5, 0.5, 0.5], ["a", "b", "c"])])
def test_what_cannot_vary_has_no_bootstrap_interval(values: list[float], clusters: list[str]) -> None:
    assert bootstrap_interval(values, clusters) is None


def test_a_win_rate_counts_a_tie_as_half_and_has_the_error_of_its_outcomes() -> None:
    outcomes = [1.0] * 50 + [0.5] * 20 + [0.0] * 30
    found = win_rate(outcomes, [str(index) for index in range(100)])
    oracle = scipy.stats.ttest_1samp(outcomes, 0.5)
    low, high = oracle.confidence_interval()
    assert found.mean.value == pytest.approx(0.6)
    assert found.mean.stderr == pytest.approx(np.std(outcomes, ddof=1) / 10)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p_value == pytest.approx(oracle.pvalue)


def test_a_model_that_always_wins_is_not_known_to_win_for_ever() -> None:
    found = win_rate([1.0] * 40, [str(index) for index in range(40)])
    assert found.low is not None and 0.8 < found.low < 1.0 and found.high == pytest.approx(1.0)
    level = win_rate([0.5] * 40, [str(index) for index in range(40)])
    assert level.low is not None and level.low < 0.5 and level.p_value == 1.0


def test_an_outcome_is_won_lost_or_tied() -> None:
    with pytest.raises(ValueError, match=r"0\.7"):
        win_rate([0.7], ["a"])
