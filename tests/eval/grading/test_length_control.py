from __future__ import annotations

import numpy as np
import pytest

from eval.grading.alpaca import fit_logistic, length_controlled
from eval.statistics import clustered_mean

N = 400
GAMMA = np.random.default_rng(7).normal(0, 1, N)
LONGER = np.random.default_rng(8).normal(150, 400, N).round().astype(int)


def drawn(seed: int, theta: float = 0.4, phi: float = -1.2, psi: float = 0.5) -> np.ndarray:
    level = theta + phi * np.tanh(LONGER / LONGER.std(ddof=1)) + psi * GAMMA
    chance = np.random.default_rng(seed).random((2, N)) < 1 / (1 + np.exp(-level))
    return chance.mean(axis=0)  # both games: 0, 0.5 or 1


def design() -> np.ndarray:
    return np.stack([np.ones(N), GAMMA, np.tanh(LONGER / LONGER.std(ddof=1))], axis=1)


def test_the_rate_is_that_of_statsmodels_fit_of_the_same_model() -> None:
    import statsmodels.api as sm

    y = drawn(10)
    found = length_controlled(y.tolist(), LONGER.tolist(), GAMMA.tolist())
    fit = sm.GLM(y, design(), family=sm.families.Binomial()).fit(tol=1e-12)
    same_length = design() * [1.0, 1.0, 0.0]
    assert found.rate == pytest.approx(float(fit.predict(same_length).mean()), abs=1e-7)
    assert found.length_effect == pytest.approx(fit.params[2], abs=1e-6)


def test_the_spread_of_the_values_is_statsmodels_sandwich_error() -> None:
    import statsmodels.api as sm

    y = drawn(11)
    found = length_controlled(y.tolist(), LONGER.tolist(), GAMMA.tolist())
    fit = sm.GLM(y, design(), family=sm.families.Binomial()).fit(tol=1e-12, cov_type="HC0")
    same_length = design() * [1.0, 1.0, 0.0]
    predicted = fit.predict(same_length)
    slope = (same_length * (predicted * (1 - predicted))[:, None]).mean(axis=0)
    moves = (design() * (y - fit.predict(design()))[:, None]) @ np.linalg.solve(
        (design() * (fit.predict(design()) * (1 - fit.predict(design())))[:, None]).T @ design(), slope
    )
    assert np.sqrt((moves**2).sum()) == pytest.approx(float(np.sqrt(slope @ fit.cov_params() @ slope)), rel=1e-6)
    mean = clustered_mean(found.values, [str(n) for n in range(N)])
    assert mean.value == pytest.approx(found.rate, abs=1e-12)
    whole = np.sqrt(((moves + (predicted - predicted.mean()) / N) ** 2).sum() * N / (N - 1))
    assert mean.stderr == pytest.approx(float(whole), rel=1e-6)


def test_the_error_is_that_of_drawing_again() -> None:
    y = drawn(12)
    found = length_controlled(y.tolist(), LONGER.tolist(), GAMMA.tolist())
    stderr = clustered_mean(found.values, [str(n) for n in range(N)]).stderr
    rates = []
    draw = np.random.default_rng(13)
    for _ in range(300):
        again = draw.integers(0, N, N)
        rates.append(length_controlled(y[again].tolist(), LONGER[again].tolist(), GAMMA[again].tolist()).rate)
    assert stderr == pytest.approx(float(np.std(rates)), rel=0.15)


def test_a_judge_who_only_likes_length_gives_no_win_when_lengths_are_controlled() -> None:
    draw = np.random.default_rng(14)
    shorter = np.where(np.arange(N) % 10 < 8, -300, 300) + draw.integers(-50, 50, N)  # the model's are mostly longer
    y = (shorter < 0).astype(float)
    y[draw.random(N) < 0.2] = 0.5
    found = length_controlled(y.tolist(), shorter.tolist())
    assert y.mean() > 0.7 and found.rate == pytest.approx(0.5, abs=0.1) and (found.length_effect or 0) < -1


def test_equal_lengths_leave_the_plain_win_rate() -> None:
    y = [1.0, 0.0, 0.5, 1.0, 1.0]
    found = length_controlled(y, [10] * 5)
    assert found.rate == pytest.approx(0.7, abs=1e-6) and found.length_effect is None
    assert found.values == pytest.approx(y, abs=1e-5)


@pytest.mark.parametrize(("y", "rate"), [(1.0, 1.0), (0.0, 0.0)])
def test_one_who_wins_or_loses_all_has_a_rate_all_the_same(y: float, rate: float) -> None:
    found = length_controlled([y] * N, LONGER.tolist(), GAMMA.tolist())
    assert found.rate == pytest.approx(rate, abs=1e-3) and np.isfinite(found.values).all()


def test_one_item_and_none() -> None:
    assert length_controlled([1.0], [5]).rate == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(ValueError, match="0 preferences"):
        length_controlled([], [])


def test_a_fit_ends_at_a_stationary_point_even_where_it_is_steep() -> None:
    draw = np.random.default_rng(15)
    rows = np.stack([np.ones(50), draw.normal(0, 30, 50)], axis=1)
    y = (rows[:, 1] + draw.normal(0, 5, 50) > 0).astype(float)
    weights = fit_logistic(rows, y)
    gradient = rows.T @ (y - 1 / (1 + np.exp(-rows @ weights)))
    assert np.abs(gradient).max() < 1e-4
