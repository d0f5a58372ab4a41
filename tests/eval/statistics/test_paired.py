"""Tango's interval against an independent solution and published numbers; what a paired interval covers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import multinomial

from eval.statistics import Interval, paired_interval, score_interval, verdict

Z2 = 3.841458820694124


def names(count: int) -> list[str]:
    return [str(index) for index in range(count)]


def differences(gained: int, lost: int, n: int) -> list[float]:
    return [1.0] * gained + [-1.0] * lost + [0.0] * (n - gained - lost)


def likelihood_score(gained: int, lost: int, n: int, delta: float) -> float:
    """The score statistic with its nuisance share found by maximising the likelihood numerically."""

    def unlikely(share: float) -> float:
        outcomes = ((gained, share + delta), (lost, share), (n - gained - lost, 1 - 2 * share - delta))
        return -sum(count * math.log(max(chance, 1e-300)) for count, chance in outcomes)

    found = minimize_scalar(unlikely, bounds=(max(0.0, -delta), (1 - delta) / 2), method="bounded")
    share = found.x
    return (gained - lost - n * delta) / math.sqrt(n * (2 * share + delta - delta**2))


@pytest.mark.parametrize(("gained", "lost", "n"), [(5, 2, 40), (1, 7, 21), (30, 12, 60), (3, 3, 250)])
def test_the_score_interval_is_where_the_likelihood_rejects_no_more(gained: int, lost: int, n: int) -> None:
    estimate = (gained - lost) / n
    low, high = score_interval(gained / n, lost / n, n)
    lower = brentq(lambda d: likelihood_score(gained, lost, n, d) - math.sqrt(Z2), -0.999, estimate)
    upper = brentq(lambda d: likelihood_score(gained, lost, n, d) + math.sqrt(Z2), estimate, 0.999)
    assert (low, high) == pytest.approx((lower, upper), abs=2e-5)


def test_the_score_interval_is_that_of_published_examples() -> None:
    """Airway hyper-responsiveness in 21 children, as Fagerland, Lydersen and Laake (2014) give it."""
    assert score_interval(1 / 21, 7 / 21, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize("n", [3, 96, 250, 1319])
def test_identical_items_bound_the_difference_as_their_number_allows(n: int) -> None:
    found = paired_interval([0.0] * n, names(n), 1.0)
    bound = Z2 / (n + Z2)
    assert (found.low, found.high) == pytest.approx((-bound, bound), abs=1e-9)
    assert (found.mean.stderr, found.p_value) == (0.0, 1.0)
    assert verdict(found, bound * 1.01) == "equivalent"
    assert verdict(found, bound * 0.99) == verdict(found, 0.0) == "inconclusive"
    wide = paired_interval([0.0] * n, names(n), 9.0)
    assert wide.high == pytest.approx(9 * bound)


def test_a_shift_that_every_item_shows_has_an_interval_too() -> None:
    found = paired_interval([1.0] * 30, names(30), 1.0)
    assert found.mean.stderr == 0.0
    assert (found.low, found.high) == pytest.approx(((30 - Z2) / (30 + Z2), 1.0))


def test_without_a_bounded_scale_identical_items_have_no_interval() -> None:
    found = paired_interval([0.0] * 20, names(20), None)
    assert (found.low, found.high, found.p_value) == (None, None, None)
    assert verdict(found, 100.0) == "inconclusive"


def test_from_ten_differing_items_on_it_is_students_t() -> None:
    few, enough = (paired_interval(differences(count, 4, 300), names(300), 1.0) for count in (5, 6))
    assert few.shares is not None and enough.shares is None
    assert enough.mean.stderr is not None and enough.high is not None
    assert enough.high - enough.mean.value == pytest.approx(1.968 * enough.mean.stderr, rel=1e-3)
    assert (few.low, few.high) == pytest.approx((enough.low, enough.high), abs=0.01)


def test_values_that_all_differ_need_no_ten() -> None:
    assert paired_interval([0.1, 0.3, 0.25, 0.4], names(4), 1.0).shares is None


def test_items_that_always_move_together_count_once() -> None:
    alone = paired_interval(differences(3, 1, 60), names(60), 1.0)
    values = [value for value in differences(3, 1, 60) for _ in range(4)]
    together = paired_interval(values, [str(index // 4) for index in range(240)], 1.0)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))
    assert together.p_value == pytest.approx(alone.p_value)


@pytest.mark.parametrize(
    ("gained", "lost"), [(0.05, 0.05), (0.1, 0.02), (0.15, 0.05), (0.3, 0.1), (0.02, 0.08), (0.25, 0.25)]
)
def test_intervals_of_sixty_pairs_cover_the_truth_in_93_to_97_of_100_samples(gained: float, lost: float) -> None:
    """Every possible sample counted with its probability, so this is no draw."""
    n = 60
    chances, covered = multinomial(n, [gained, lost, 1 - gained - lost]), 0.0
    for won in range(n + 1):
        for gone in range(n + 1 - won):
            chance = chances.pmf([won, gone, n - won - gone])
            if chance > 1e-7:
                found = paired_interval(differences(won, gone, n), names(n), 1.0)
                assert found.low is not None and found.high is not None
                covered += chance * (found.low <= gained - lost <= found.high)
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("share", [0.0, 0.002, 0.01, 0.03])
def test_intervals_of_rare_changes_in_clusters_cover_at_least_94_of_100(share: float) -> None:
    """250 prompts of one to three instructions, which of one prompt change together three times in four."""
    generator = np.random.default_rng(7)
    covered, draws = 0, 400
    for _ in range(draws):
        sizes = generator.integers(1, 4, size=250)
        clusters = [str(index) for index, size in enumerate(sizes) for _ in range(size)]
        signs = generator.choice([-1.0, 1.0], size=250) * (generator.random(250) < share)
        kept = generator.random(len(clusters)) < 0.75
        values = [float(signs[int(cluster)]) if keep else 0.0 for cluster, keep in zip(clusters, kept, strict=True)]
        found = paired_interval(values, clusters, 1.0)
        assert found.low is not None and found.high is not None
        covered += found.low <= 0.0 <= found.high
    assert covered >= 0.94 * draws


def test_ratings_that_change_now_and_then_are_covered() -> None:
    """80 questions rated 1 to 10 of which one in twelve changes by up to three points, more often up than down."""
    generator = np.random.default_rng(3)
    covered, draws, truth = 0, 400, (1 + 2 + 3 - 1) / 4 / 12
    for _ in range(draws):
        changes = generator.choice([1.0, 2.0, 3.0, -1.0], size=80) * (generator.random(80) < 1 / 12)
        found = paired_interval(changes.tolist(), names(80), 9.0)
        assert found.low is not None and found.high is not None
        covered += found.low <= truth <= found.high
    assert covered >= 0.94 * draws


def bounds(found: Interval) -> tuple[float, float]:
    assert found.low is not None and found.high is not None
    return found.low, found.high


pairs = st.lists(st.sampled_from([-1.0, 0.0, 0.0, 0.0, 1.0]), min_size=2, max_size=60)


@given(pairs)
def test_the_interval_holds_its_mean_and_never_leaves_the_scale_by_score(values: list[float]) -> None:
    found = paired_interval(values, names(len(values)), 1.0)
    low, high = bounds(found)
    assert low <= found.mean.value + 1e-12 and found.mean.value - 1e-12 <= high
    assert low < high
    if found.shares is not None:
        assert low >= -1.0 and high <= 1.0
    assert found.p_value is not None
    assert (found.p_value < 0.05) == (low > 0 or high < 0) or min(abs(low), abs(high)) < 1e-9


@given(pairs, st.randoms(use_true_random=False))
def test_order_changes_nothing_and_swapping_the_models_turns_the_interval_round(values: list[float], rng) -> None:  # type: ignore[no-untyped-def]
    low, high = bounds(paired_interval(values, names(len(values)), 1.0))
    mixed = list(values)
    rng.shuffle(mixed)
    assert bounds(paired_interval(mixed, names(len(values)), 1.0)) == pytest.approx((low, high))
    turned = bounds(paired_interval([-value for value in values], names(len(values)), 1.0))
    assert turned == pytest.approx((-high, -low), abs=1e-9)


@given(st.integers(0, 9), st.integers(0, 9), st.integers(20, 400))
def test_more_pairs_with_the_same_shares_narrow_the_score_interval(gained: int, lost: int, n: int) -> None:
    widths = [high - low for low, high in (score_interval(gained / n, lost / n, n * times) for times in (1, 2, 5))]
    assert all(wide > narrow for wide, narrow in itertools.pairwise(widths))


def test_what_is_no_share_or_leaves_the_scale_is_refused() -> None:
    for gained, lost, n in ((0.7, 0.5, 10), (-0.1, 0.0, 10), (0.1, 0.1, 0)):
        with pytest.raises(ValueError, match="not shares"):
            score_interval(gained, lost, n)
    with pytest.raises(ValueError, match="scale of width 1"):
        paired_interval([0.0, 2.0], ["a", "b"], 1.0)
