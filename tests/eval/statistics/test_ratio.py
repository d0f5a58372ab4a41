"""A ratio of totals against the jackknife, and its coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from eval.statistics import clustered_mean, ratio_interval


def test_the_standard_error_is_that_of_the_jackknife() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 80, 300).astype(float)
    nats = 0.02 * tokens + rng.normal(0, 0.5, 300)
    found = ratio_interval(nats.tolist(), tokens.tolist())
    left_out = (nats.sum() - nats) / (tokens.sum() - tokens)
    jackknife = np.sqrt(299 / 300 * ((left_out - left_out.mean()) ** 2).sum())
    assert found.mean.value == pytest.approx(nats.sum() / tokens.sum())
    assert found.mean.stderr == pytest.approx(jackknife, rel=0.01)


def test_over_equal_denominators_it_is_the_mean() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    found, plain = ratio_interval(values, [1.0] * 4), clustered_mean(values, list("abcd"))
    assert (found.mean.value, found.mean.stderr) == pytest.approx((plain.value, plain.stderr))


def test_its_interval_covers_the_truth_19_times_in_20() -> None:
    rng = np.random.default_rng(1)
    trials, inside = 1000, 0
    for _ in range(trials):
        tokens = rng.geometric(0.05, 128).astype(float)
        nats = 0.1 * tokens + rng.normal(0, 1, 128) * np.sqrt(tokens)
        found = ratio_interval(nats.tolist(), tokens.tolist())
        assert found.low is not None and found.high is not None
        inside += found.low < 0.1 < found.high
    assert 0.93 <= inside / trials <= 0.97


def test_a_ratio_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="add up to zero"):
        ratio_interval([1.0], [0.0])
