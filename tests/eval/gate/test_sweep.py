"""The winner of a sweep is picked on one half of the items and confirmed on the other."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from alignment.errors import BadInput
from alignment.recipe import Gate, Recipe, Requirement
from alignment.recipe.several import Soups
from eval.gate.default import sweep_metric
from eval.gate.sweep import Choice, Half, PointResult, check_of, choose, picks
from eval.suites.samples import Sample

ITEMS = 160


def samples(values: Sequence[float | None]) -> list[Sample]:
    return [Sample("s", str(index), f"item {index}", "m", value, "") for index, value in enumerate(values)]


def answers(rng: random.Random, chances: Sequence[float]) -> list[float]:
    return [float(rng.random() < chance) for chance in chances]


def chosen(baseline: Sequence[float | None], **points: Sequence[float | None]) -> Choice:
    settings = {name: {"beta": float(place)} for place, name in enumerate(points, start=1)}
    made = {name: samples(values) for name, values in points.items()}
    results, picked, confirmed = choose(samples(baseline), made, settings)
    return Choice(metric="s/m", width=1.0, points=results, picked=picked, confirmed=confirmed)


def test_the_halves_are_about_equal_and_a_cluster_is_in_one_of_them() -> None:
    first = sum(picks(f"item {index}") for index in range(2000))
    assert 900 < first < 1100
    assert picks("item 1") == picks("item 1")


def test_the_best_on_one_half_is_picked_and_the_other_half_decides() -> None:
    baseline = [0.0] * ITEMS
    better = [1.0] * ITEMS
    only_where_it_picks = [float(picks(f"item {index}")) for index in range(ITEMS)]
    choice = chosen(baseline, worse=[0.0] * ITEMS, lucky=only_where_it_picks)
    assert (choice.picked, choice.confirmed) == ("lucky", False)
    assert choice.points["lucky"].picking.difference == 1 and choice.points["lucky"].confirming.difference == 0
    check = check_of(choice, "sft")
    assert check.outcome == "inconclusive" and "beta 2 was the best of 2 points" in check.reason
    choice = chosen(baseline, worse=[0.0] * ITEMS, better=better)
    assert (choice.picked, choice.confirmed) == ("better", True)
    assert check_of(choice, "sft").outcome == "pass"
    assert chosen(baseline, one=better, other=better).picked == "one", "the first of equal points"


def test_p_values_are_corrected_for_the_number_of_points() -> None:
    rng = random.Random(1)
    baseline = answers(rng, [0.5] * ITEMS)
    point = [max(value, float(rng.random() < 0.12)) for value in baseline]
    alone, of_many = chosen(baseline, a=point), chosen(baseline, a=point, **{f"p{n}": baseline for n in range(11)})
    assert of_many.picked == alone.picked == "a"
    p_value = alone.points["a"].p_value
    assert p_value is not None and alone.points["a"].corrected == p_value
    assert of_many.points["a"].corrected == pytest.approx(12 * p_value)


@pytest.mark.slow
@pytest.mark.parametrize("points", [3, 12])
def test_a_sweep_of_equal_points_promotes_one_in_at_most_a_twentieth_of_the_cases(points: int) -> None:
    """Without the second half the best of twelve would look better than the start nearly always."""
    rng = random.Random(points)
    runs, promoted, looked_better = 400, 0, 0
    for _ in range(runs):
        chances = [rng.choice((0.2, 0.5, 0.8)) for _ in range(ITEMS)]
        choice = chosen(answers(rng, chances), **{f"p{n}": answers(rng, chances) for n in range(points)})
        promoted += choice.confirmed
        looked_better += choice.points[choice.picked].picking.difference > 0
    assert promoted <= 0.05 * runs
    assert looked_better > 0.7 * runs


def test_a_half_without_items_is_refused() -> None:
    with pytest.raises(BadInput, match="raise the suite's limit"):
        chosen([None] * ITEMS, a=[1.0] * ITEMS)


PLAIN = {
    "name": "small",
    "base_model": {"embedded": "micro"},
    "sft": {"dataset": {"embedded": "micro"}},
    "preferences": {"embedded": "micro"},
    "evals": {"gsm8k": {"embedded": "micro"}, "ifeval": {"embedded": "micro"}, "mt_bench": {"embedded": "micro"}},
}


def recipe(**sweep: object) -> Recipe:
    return Recipe.model_validate(PLAIN | {"sweep": {"beta": [0.1, 0.2], **sweep}})


def test_the_metric_is_the_recipes_the_gates_or_the_first_suites() -> None:
    assert sweep_metric(recipe(by="ifeval/inst_level_strict_acc"), None) == "ifeval/inst_level_strict_acc"
    gate = Gate(
        metrics={
            "gsm8k/exact_match,strict-match": Requirement(no_regression=0.1),
            "ifeval/prompt_level_strict_acc": Requirement(improve=0.0),
        }
    )
    assert sweep_metric(recipe(), gate) == "ifeval/prompt_level_strict_acc"
    assert sweep_metric(recipe(), None) == "gsm8k/exact_match,strict-match"
    for by, told in (
        ("ifeval/strictness", "ifeval has no such metric"),
        ("mt_bench/average", "mt_bench is not scored: the recipe has no judge"),
    ):
        with pytest.raises(BadInput, match=f"'sweep.by': {told}"):
            sweep_metric(recipe(by=by), None)
        averaged = recipe().model_copy(update={"sweep": None, "soups": Soups(sft=(0.2,), by=by)})
        with pytest.raises(BadInput, match=f"'soups.by': {told}"):
            sweep_metric(averaged, None)


def test_averages_are_called_candidates_and_the_policy_alone_is_named() -> None:
    half = Half(n=80, difference=0.25, low=0.1, high=0.4)
    settings: dict[str, dict[str, float]] = {"alone": {}, "sft": {"sft": 0.2}, "last": {"champions": 2.0}}
    points = {name: PointResult(settings=one, picking=half, confirming=half) for name, one in settings.items()}
    sentences = [
        Choice(metric="s/m", width=1.0, points=points, picked=name, confirmed=True).sentence for name in settings
    ]
    assert sentences[0].startswith(
        "the policy alone was the best of 3 candidates on 80 items; on 80 others it is +25.0"
    )
    assert sentences[1].startswith("0.2 of the SFT checkpoint was") and "the last champions, at most 2" in sentences[2]
