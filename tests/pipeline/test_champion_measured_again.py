"""The champion is measured again when the recipe measures otherwise, once, and only then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest

from alignment.recipe import Recipe, parse_recipe
from alignment.store import Artifact, Commit, Ref, Store
from alignment_dags.retention.collect import collect
from assets.building.factory import asset_key, asset_resources, build_asset
from assets.building.upstream import Upstream
from assets.graph import nodes_of
from resources.mlflow import Tracking
from resources.pools import load_pools
from resources.store import ArtifactStore

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


def answers(store: Store) -> int:
    return sum(1 for _ in store.commits("responses"))


def test_new_settings_ask_the_champion_once_and_the_gate_decides(
    recipes: Callable[..., Recipe], finished: Callable[..., Upstream], bring_up_to_date: Callable[..., Upstream]
) -> None:
    launched: list[tuple[str, list[str]]] = bring_up_to_date.launched  # type: ignore[attr-defined]
    first = finished(recipes(0.1))("policy_checkpoint")
    second = bring_up_to_date(recipes(0.9))
    champion = second("policy_checkpoint")
    before = answers(second.store)
    assert measured(launched) == [], "under the same settings a champion's scores stand"
    assert report_of(second).inputs["champion"] == first
    assert before == 3

    launched.clear()
    third = bring_up_to_date(recipes(0.5, limit=4))
    assert measured(launched) == MEASURED
    assert answers(third.store) == before + 3, "SFT checkpoint, policy and champion answer once each"
    report = report_of(third)
    assert report.inputs["champion"] == champion
    assert report.summary["champion"]["ifeval"][METRIC]["n"] == 4
    assert report.summary["verdict"] == "pass"
    assert report.inputs["champion_scores.ifeval"] == third("champion_evals/ifeval")
    champion = third("policy_checkpoint")

    launched.clear()
    bring_up_to_date(recipes(0.5, limit=4))
    assert launched == []
    third.store.remove_ref("small", "champion_responses")
    bring_up_to_date(recipes(0.5, limit=4))
    assert launched == [("train", ["champion_responses"])], "what was made and not reported is reported"
    assert answers(third.store) == before + 3

    launched.clear()
    fourth = bring_up_to_date(recipes(0.7, limit=4))
    assert measured(launched) == []
    assert answers(fourth.store) == before + 4
    assert report_of(fourth).inputs["champion"] == champion


def test_new_settings_alone_compare_the_champion_with_whom_it_followed(
    recipes: Callable[..., Recipe], finished: Callable[..., Upstream], bring_up_to_date: Callable[..., Upstream]
) -> None:
    launched: list[tuple[str, list[str]]] = bring_up_to_date.launched  # type: ignore[attr-defined]
    first = finished(recipes(0.1))("policy_checkpoint")
    finished(recipes(0.1), recipes(0.9))
    again = bring_up_to_date(recipes(0.9, limit=4))
    assert measured(launched) == MEASURED
    assert report_of(again).inputs["champion"] == first
    assert report_of(again).summary["verdict"] == "pass"


def test_without_its_weights_it_is_left_out_by_name_where_the_settings_are_others(
    recipes: Callable[..., Recipe], finished: Callable[..., Upstream], bring_up_to_date: Callable[..., Upstream]
) -> None:
    launched: list[tuple[str, list[str]]] = bring_up_to_date.launched  # type: ignore[attr-defined]
    finished(recipes(0.1), recipes(0.9))
    (erased,) = [one for one in collect([], keep=0)["erased"] if one["kind"] == "policy_checkpoint"]
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


@pytest.fixture
def materialize() -> Callable[..., dg.ExecuteInProcessResult]:
    """The named nodes of a recipe, as a person chooses them in the UI."""

    def run(recipe: Recipe, chosen: list[str]) -> dg.ExecuteInProcessResult:
        with dg.DagsterInstance.get() as instance:
            return dg.materialize(
                [build_asset(node, recipe, load_pools()) for node in nodes_of(recipe, load_pools())],
                instance=instance,
                resources=asset_resources(),
                selection=[asset_key(recipe.name, name) for name in chosen],
            )

    return run


def test_before_there_is_a_champion_its_nodes_make_nothing_and_the_report_goes_on(
    recipes: Callable[..., Recipe],
    finished: Callable[..., Upstream],
    bring_up_to_date: Callable[..., Upstream],
    materialize: Callable[..., Any],
) -> None:
    made = bring_up_to_date(recipes(0.1))
    result = materialize(recipes(0.1), [*MEASURED, "evaluation_report"])
    for name in MEASURED:
        (event,) = result.asset_materializations_for_node(f"small__{name.replace('/', '__')}")
        assert "there is no champion yet" in str(event.metadata["nothing_to_make"].value)
        assert made.get(name) is None
    (event,) = result.asset_materializations_for_node("small__evaluation_report")
    assert event.metadata["reused"].value is True


def test_a_report_and_a_registration_are_about_the_champion_that_stands(
    recipes: Callable[..., Recipe],
    finished: Callable[..., Upstream],
    bring_up_to_date: Callable[..., Upstream],
    materialize: Callable[..., Any],
) -> None:
    """As when somebody promotes another version while a run is under way."""
    first = finished(recipes(0.1))
    policy, older = first("policy_checkpoint"), first("registered_model")
    latest = bring_up_to_date(recipes(0.9))("registered_model")
    recipe = recipes(0.5, limit=4)
    names = [node.name for node in nodes_of(recipe, load_pools()) if not node.partitioned]

    def stands(registration: Artifact) -> None:
        first.store.write_ref(Ref(artifact=registration), "small", "registered_model")

    materialize(recipe, names[: names.index("evaluation_report")])
    stands(older)
    with pytest.raises(dg.Failure, match="champion_responses of version 1 has not been built yet"):
        materialize(recipe, ["evaluation_report"])
    stands(latest)
    materialize(recipe, ["evaluation_report"])
    stands(older)
    with pytest.raises(dg.Failure, match="compared it with another champion, and the champion is now version 1"):
        materialize(recipe, ["registered_model"])
    versions = Tracking().client().search_model_versions("name='small'")
    assert {str(version.version) for version in versions} == {"1", "2"}
    made = bring_up_to_date(recipe)
    assert report_of(made).inputs["champion"] == policy
    assert report_of(made).summary["verdict"] == "pass"
