from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from eval.statistics import (
    Interval,
    Spread,
    clusters_needed,
    clusters_to_prove,
    minimum_detectable_effect,
    p_above,
    paired_interval,
    pooled_spread,
    smallest_provable,
)


def spread(shift: float, n: int, by: float = 0.5) -> Interval:
    values = [shift + (by if index % 2 else -by) for index in range(n)]
    return paired_interval(values, [str(index) for index in range(n)], None)


def rare(gained: int, lost: int, n: int) -> Interval:
    values = [1.0] * gained + [-1.0] * lost + [0.0] * (n - gained - lost)
    return paired_interval(values, [str(index) for index in range(n)], 1.0)


def test_the_minimum_detectable_effect_is_found_four_times_in_five() -> None:
    found = spread(0.0, 400)
    effect = minimum_detectable_effect(found)
    assert effect is not None and found.mean.stderr is not None
    power = 1 - scipy.stats.norm.cdf(scipy.stats.norm.ppf(0.975) - effect / found.mean.stderr)
    assert power == pytest.approx(0.8, abs=1e-6)


def test_identical_items_have_a_minimum_detectable_effect_that_their_number_gives() -> None:
    effects = [minimum_detectable_effect(rare(0, 0, n)) for n in (50, 250, 1000)]
    assert effects == pytest.approx([0.1020, 0.02163, 0.005470], rel=1e-3)
    assert minimum_detectable_effect(paired_interval([0.0] * 5, list("abcde"), None)) is None


@pytest.mark.parametrize("found", [spread(0.1, 30), rare(2, 1, 100), rare(0, 4, 60), rare(0, 0, 40)])
def test_the_p_value_above_a_threshold_is_a_fortieth_where_the_interval_ends(found: Interval) -> None:
    assert found.low is not None and found.high is not None
    assert p_above(found, found.low) == pytest.approx(0.025, rel=1e-6)
    assert p_above(found, found.high) == pytest.approx(0.975, rel=1e-6)
    assert p_above(found, found.mean.value) == pytest.approx(0.5)


def test_the_p_value_above_a_threshold_is_the_one_sided_t_test() -> None:
    values = [0.3, 0.1, 0.5, 0.2, -0.1, 0.4]
    found = paired_interval(values, list("abcdef"), None)
    oracle = scipy.stats.ttest_1samp(values, 0.05, alternative="greater")
    assert p_above(found, 0.05) == pytest.approx(oracle.pvalue)
    assert p_above(rare(0, 0, 9), -2.0) == 0.0 and p_above(rare(0, 0, 9), 2.0) == 1.0


def test_as_many_clusters_as_are_said_to_be_needed_make_the_effect_detectable() -> None:
    found = spread(0.1, 30)
    needed = clusters_needed(found, threshold=-0.02)
    assert needed is not None and needed > 30
    again = minimum_detectable_effect(spread(0.1, needed))
    assert again is not None and again <= 0.12
    assert clusters_needed(found, threshold=found.mean.value) is None


@pytest.mark.parametrize(("gained", "lost", "n", "margin"), [(0, 0, 50, 0.02), (2, 4, 100, 0.05), (1, 0, 30, 0.01)])
def test_as_many_equal_items_as_are_said_to_be_needed_leave_the_margin_out(
    gained: int, lost: int, n: int, margin: float
) -> None:
    found = rare(gained, lost, n)
    needed = clusters_needed(found, -margin)
    assert needed is not None and found.shares is not None and found.low is not None and found.low < -margin
    from eval.statistics import score_interval

    shares = found.shares
    assert score_interval(shares.gained, shares.lost, needed)[0] > -margin
    assert score_interval(shares.gained, shares.lost, needed - 1)[0] <= -margin


def test_no_number_is_told_where_none_would_do() -> None:
    assert clusters_needed(rare(0, 0, 20), 0.0) is None
    assert clusters_needed(rare(1, 0, 20), 0.05 + 1e-12) is None
    assert clusters_needed(paired_interval([0.0] * 3, list("abc"), None), 0.1) is None


def simulated_night(rng: np.random.Generator, items: int, difference: float, kind: str) -> list[float]:
    """Paired differences of one night. `ratings` are half points that move by chance, and all alike on a question's two
    turns; `answers` are right or wrong, and so many of them differ as the name's percentage."""
    if kind == "ratings":
        return list(np.repeat(rng.normal(difference, 1.2, items), 2))
    differing = max(float(kind.rpartition(" ")[2]) / 100, difference)
    lost = (differing - difference) / 2
    return list(rng.choice([1.0, -1.0, 0.0], items, p=[lost + difference, lost, 1 - differing]))


def compared(values: list[float], kind: str) -> tuple[Interval, int | None]:
    ratings = kind == "ratings"
    clusters = [str(index // (2 if ratings else 1)) for index in range(len(values))]
    interval = paired_interval(values, clusters, 9.0 if ratings else 1.0)
    return interval, None if ratings else sum(value != 0 for value in values)


def test_the_smallest_provable_change_is_proved_in_four_of_five_of_a_thousand_simulated_nights() -> None:
    """Of three kinds of suites, each night with the spread that five nights before it, without any change, have
    shown."""
    rng, nights = np.random.default_rng(7), 1000
    kinds = [("ratings", 80), ("answers 12", 250), ("answers 1", 164)]
    changes: dict[str, float] = {}
    proved: dict[str, list[bool]] = {kind: [] for kind, _ in kinds}
    for night in range(nights):
        kind, items = kinds[night % len(kinds)]
        if night % 30 < len(kinds):  # another recipe's past
            spread = pooled_spread([compared(simulated_night(rng, items, 0.0, kind), kind) for _ in range(5)])
            assert spread is not None
            change = smallest_provable(spread, items)
            assert change is not None
            changes[kind] = change
        low = compared(simulated_night(rng, items, changes[kind], kind), kind)[0].low
        proved[kind].append(low is not None and low > 0)
    assert sum(map(sum, proved.values())) / nights == pytest.approx(0.8, abs=0.05)
    for kind, outcomes in proved.items():
        assert sum(outcomes) / len(outcomes) == pytest.approx(0.8, abs=0.06), kind


def test_more_items_prove_less_and_as_many_as_are_said_to_be_needed_prove_the_margin() -> None:
    for known in (Spread(0.3), Spread(0.3, 0.1), Spread(0.0, 0.0)):
        few, many = (smallest_provable(known, items) for items in (100, 400))
        assert few is not None and many is not None and many < few
        needed = clusters_to_prove(known, 0.03)
        assert needed is not None
        assert smallest_provable(known, needed) <= 0.03 < smallest_provable(known, needed - 1)  # type: ignore[operator]
    assert smallest_provable(Spread(0.3), 1) is None
    assert pooled_spread([]) is None and clusters_to_prove(Spread(1.0), 1e-6) is None


def test_a_provable_change_is_that_of_mcnemars_test_where_many_items_differ() -> None:
    """Connor (1987), equation 2, solved for the difference; exact counts are within 2 % of his approximation."""
    differing, items = 0.2, 2000

    def connor(difference: float) -> float:
        z = scipy.stats.norm.ppf([0.975, 0.8])
        return (z[0] * differing**0.5 + z[1] * (differing - difference**2) ** 0.5) ** 2 / difference**2 - items

    approximate = scipy.optimize.brentq(connor, 1e-4, 0.15)
    assert smallest_provable(Spread(0.0, differing), items) == pytest.approx(approximate, rel=0.02)
