from __future__ import annotations

import math

import numpy as np
import pytest

from eval.grading.arena import bootstrap_interval, linearised, share
from eval.statistics import clustered_mean

BATTLES = {"a": (2.0, 2.0), "b": (3.5, 4.0), "c": (0.0, 6.0), "d": (1.0, 2.0), "e": (4.0, 4.0)}


def test_a_share_is_of_all_battles_together() -> None:
    assert share(BATTLES.values()) == pytest.approx(10.5 / 18)


def test_a_bradley_terry_fit_of_two_models_predicts_the_share() -> None:
    import statsmodels.api as sm

    rows, weights = [], []
    for won, played in BATTLES.values():
        rows += [1.0, 0.0]
        weights += [won, played - won]
    fit = sm.GLM(rows, np.ones((len(rows), 1)), family=sm.families.Binomial(), freq_weights=weights).fit()
    assert 1 / (1 + math.exp(-fit.params[0])) == pytest.approx(share(BATTLES.values()), abs=1e-9)


def test_the_mean_of_linearised_values_is_the_share_and_their_error_that_of_a_ratio() -> None:
    values = linearised(BATTLES)
    mean = clustered_mean(list(values.values()), list(values))
    won, played = np.array(list(BATTLES.values())).T
    residual = won - share(BATTLES.values()) * played
    textbook = math.sqrt((residual**2).sum() / (len(won) - 1) / len(won)) / played.mean()
    assert (mean.value, mean.stderr) == (pytest.approx(10.5 / 18), pytest.approx(textbook))
    assert linearised({}) == {}


def test_the_interval_holds_the_share_repeats_and_narrows() -> None:
    few = list(BATTLES.values())
    low, high = bootstrap_interval(few)
    assert low < share(few) < high and bootstrap_interval(few) == (low, high)
    narrow = bootstrap_interval(few * 50)
    assert narrow[1] - narrow[0] < (high - low) / 4
    stderr = clustered_mean(list(linearised(dict(enumerate(few * 50))).values()), [str(n) for n in range(250)]).stderr  # type: ignore[arg-type]
    assert stderr is not None and (narrow[1] - narrow[0]) / 3.92 == pytest.approx(stderr, rel=0.1)
    assert bootstrap_interval([(2.0, 2.0)]) == (1.0, 1.0)
