"""The champion is measured again when the recipe measures otherwise, once, and only then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest

from alignment.artifacts import Commit, Ref
from alignment.recipe import Recipe, parse_recipe
from alignment_dags.gc import collect
from assets.factory import asset_key, build_asset
from assets.graph import nodes_of
from assets.upstream import Upstream
from resources.pools import load_pools
from resources.store import ArtifactStore
from resources.tracking import Tracking

METRIC = "prompt_level_strict_acc"
MEASURED = ["champion_responses", "champion_evals/ifeval"]


@pytest.fixture
def recipes(small_recipe: dict[str, Any]) -> Callable[..., Recipe]:
    """The small recipe with a gate; another `beta` gives another policy, another `limit` other settings."""

    def recipe(beta: float, limit: int | None = None) -> Recipe:
        evals = small_recipe["evals"] | {"ifeval": small_recipe["evals"]["ifeval"] | {"limit": limit}}
        gate = {"metrics": {f"ifeval/{METRIC}": {"no_regression": 1.0}}}
        changed = {"dpo": small_recipe["dpo"] | {"beta": beta}, "evals": evals, "gate": gate}
        return parse_recipe(small_recipe | changed, "-", {})

    return recipe


def report_of(made: Upstream) -> Commit:
    return made.store.commit_of(made("evaluation_report"))


def measured(launched: list[tuple[str, list[str]]]) -> list[str]:
    """The champion's nodes that were launched, in order."""
    return [name for _, nodes in launched for name in nodes if name.startswith("champion")]


def answers(store: Any) -> int:
    return sum(1 for _ in store.commits("responses"))


def test_new_settings_ask_the_champion_once_and_the_gate_decides(
    recipes: Callable[..., Recipe], bring_up_to_date: Callable[..., Upstream]
) -> None:
    launched: list[tuple[str, list[str]]] = bring_up_to_date.launched  # type: ignore[attr-defined]
    first = bring_up_to_date(recipes(0.1))("policy_checkpoint")
    second = bring_up_to_date(recipes(0.9))
    second("policy_checkpoint")
    before = answers(second.store)
    assert measured(launched) == [], "under the same settings a champion's scores stand"
    assert report_of(second).inputs["champion"] == first
    assert before == 3

    launched.clear()
    third = bring_up_to_date(recipes(0.5, limit=4))
    assert measured(launched) == MEASURED
    assert answers(third.store) == before + 3, "SFT checkpoint, policy and champion answer once each"
    report = report_of(third)
    assert report.inputs["champion"] == second("policy_checkpoint")
    assert report.summary["champion"]["ifeval"][METRIC]["n"] == 4
    assert report.summary["verdict"] == "pass"
    assert report.inputs["champion_scores.ifeval"] == third("champion_evals/ifeval")

    launched.clear()
    bring_up_to_date(recipes(0.5, limit=4))
    assert launched == []
    fourth = bring_up_to_date(recipes(0.7, limit=4))
    assert measured(launched) == []
    assert answers(fourth.store) == before + 4
    assert report_of(fourth).inputs["champion"] == third("policy_checkpoint")


def test_new_settings_alone_compare_the_champion_with_whom_it_followed(
    recipes: Callable[..., Recipe], bring_up_to_date: Callable[..., Upstream]
) -> None:
    launched: list[tuple[str, list[str]]] = bring_up_to_date.launched  # type: ignore[attr-defined]
    first = bring_up_to_date(recipes(0.1))("policy_checkpoint")
    bring_up_to_date(recipes(0.9))
    launched.clear()
    again = bring_up_to_date(recipes(0.9, limit=4))
    assert measured(launched) == MEASURED
    assert report_of(again).inputs["champion"] == first
    assert report_of(again).summary["verdict"] == "pass"


def test_without_its_weights_it_is_left_out_by_name_where_the_settings_are_others(
    recipes: Callable[..., Recipe], bring_up_to_date: Callable[..., Upstream]
) -> None:
    launched: list[tuple[str, list[str]]] = bring_up_to_date.launched  # type: ignore[attr-defined]
    bring_up_to_date(recipes(0.1))
    bring_up_to_date(recipes(0.9))
    (erased,) = [one for one in collect([], keep=0)["erased"] if one["kind"] == "policy_checkpoint"]
    launched.clear()
    bring_up_to_date(recipes(0.9))
    assert launched == [], "what it answered stands without its weights"
    with pytest.raises(dg.Failure, match="the champion was measured with other settings"):
        bring_up_to_date(recipes(0.9, limit=4))
    assert measured(launched) == []
    made = Upstream(ArtifactStore().open(), "small")
    report = report_of(made)
    assert report.inputs["champion"].digest == erased["digest"]
    assert report.summary["notes"][0].startswith("The champion, version 1, cannot be measured again: its weights were ")
    assert "IFEval against the champion: measured with other settings" in report.summary["notes"]


def test_a_champion_that_changes_after_the_report_is_followed_by_nobody_that_was_not_compared_with_it(
    recipes: Callable[..., Recipe], bring_up_to_date: Callable[..., Upstream]
) -> None:
    first = bring_up_to_date(recipes(0.1))
    registration = first("registered_model")
    bring_up_to_date(recipes(0.9))("registered_model")
    recipe = recipes(0.5)
    assets = [build_asset(node, recipe, load_pools()) for node in nodes_of(recipe, load_pools())]
    names = [node.name for node in nodes_of(recipe, load_pools()) if not node.partitioned]
    resources = {"store": ArtifactStore(), "tracking": Tracking()}

    def materialize(*chosen: str) -> None:
        selection = [asset_key("small", name) for name in chosen]
        with dg.DagsterInstance.get() as instance:
            dg.materialize(assets, instance=instance, resources=resources, selection=selection)

    materialize(*(name for name in names if name != "registered_model"))
    first.store.write_ref(Ref(artifact=registration), "small", "registered_model")
    with pytest.raises(dg.Failure, match="compared it with another champion, and the champion is version 1 by now"):
        materialize("registered_model")
    versions = Tracking().client().search_model_versions("name='small'")
    assert {str(version.version) for version in versions} == {"1", "2"}
    made = bring_up_to_date(recipe)
    assert report_of(made).inputs["champion"] == first("policy_checkpoint")
