"""The champion through promotions, returns and `gate: none`; and the gate asked again, whatever is edited."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.recipe import Recipe, parse_recipe
from alignment_dags.registry.lineage import lineage_of
from assets.building.upstream import Upstream
from assets.champion import champion_for
from resources.mlflow import Tracking

PASSES = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}}
FAILS = {"metrics": {"ifeval/prompt_level_strict_acc": {"at_least": 1.1}}}


@pytest.fixture
def recipes(small_recipe: dict[str, Any]) -> Callable[..., Recipe]:
    """The small recipe with a gate; another `beta` gives another policy."""

    def recipe(beta: float, gate: Any = PASSES) -> Recipe:
        return parse_recipe(small_recipe | {"dpo": small_recipe["dpo"] | {"beta": beta}, "gate": gate}, "-", {})

    return recipe


def champion() -> str:
    version = Tracking().client().get_model_version_by_alias("small", "champion")
    return f"{version.version} {version.tags['align.policy_digest']}"


def test_the_alias_follows_every_promotion_and_lineage_says_the_same_from_both_sides(
    recipes: Callable[..., Recipe], bring_up_to_date: Callable[..., Upstream]
) -> None:
    promoted = []
    for beta in (0.1, 0.9, 0.1, 0.9):
        made = bring_up_to_date(recipes(beta))
        promoted.append(f"{1 if beta == 0.1 else 2} {made('policy_checkpoint').digest}")
        assert champion() == promoted[-1]
        from_store, from_mlflow = lineage_of("small"), lineage_of("small", "mlflow")
        assert from_store == from_mlflow
        assert from_store["version"] == promoted[-1][0]
        assert len(from_store["shards"]) == 2, "the shards of this policy, not those of whom it was compared with"
    launched = list(bring_up_to_date.launched)  # type: ignore[attr-defined]
    bring_up_to_date(recipes(0.9))
    assert bring_up_to_date.launched == launched  # type: ignore[attr-defined]


def test_registering_nothing_hides_no_champion(
    recipes: Callable[..., Recipe], finished: Callable[..., Upstream], bring_up_to_date: Callable[..., Upstream]
) -> None:
    first = finished(recipes(0.1))("policy_checkpoint")
    ungated = bring_up_to_date(recipes(0.9, "none"))
    assert ungated.store.commit_of(ungated("registered_model")).summary["registered"] is False
    candidate = bring_up_to_date(recipes(0.5))
    report = candidate.store.commit_of(candidate("evaluation_report"))
    assert report.inputs["champion"].digest == first.digest
    assert champion_for(candidate, candidate("policy_checkpoint")).policy == first


@pytest.mark.parametrize(
    ("gate", "edit", "told"),
    [
        (FAILS, None, "the gate says fail"),
        (FAILS, "verdict.json", "not registered: .*verdict.json"),
        (FAILS, "request.json", "not registered: .*request.json"),
    ],
)
def test_a_failed_gate_registers_nothing_whatever_is_edited(
    gate: Any, edit: str | None, told: str, recipes: Callable[..., Recipe], finished: Callable[..., Upstream]
) -> None:
    import dagster as dg

    from assets.building.factory import asset_key, asset_resources, build_asset
    from assets.graph import nodes_of
    from resources.pools import load_pools
    from resources.store import ArtifactStore

    recipe = recipes(0.1, gate)
    finished(recipe, failure="the gate says fail")
    store = ArtifactStore().open()
    if edit:
        (report,) = store.commits("evaluation_report")
        path = Path(store.path(report.kind, report.key, report.attempt, edit))
        text = path.read_text(encoding="utf-8").replace("fail", "pass").replace("1.1", "0.0")
        path.write_text(text, encoding="utf-8")
        json.loads(text)
    assets = [build_asset(node, recipe, load_pools()) for node in nodes_of(recipe, load_pools())]
    with dg.DagsterInstance.get() as instance, pytest.raises(dg.Failure, match=told):
        dg.materialize(
            assets,
            instance=instance,
            resources=asset_resources(),
            selection=[asset_key("small", "registered_model")],
        )
    assert Tracking().client().search_registered_models() == []


def test_a_loosened_gate_needs_a_report_of_its_own(
    recipes: Callable[..., Recipe], finished: Callable[..., Upstream], bring_up_to_date: Callable[..., Upstream]
) -> None:
    import dagster as dg

    from assets.building.factory import asset_key, asset_resources, build_asset
    from assets.graph import nodes_of
    from resources.pools import load_pools

    finished(recipes(0.1, FAILS), failure="the gate says fail")
    loosened = recipes(0.1, PASSES)
    assets = [build_asset(node, loosened, load_pools()) for node in nodes_of(loosened, load_pools())]
    with dg.DagsterInstance.get() as instance, pytest.raises(dg.Failure, match="other gate settings"):
        dg.materialize(
            assets,
            instance=instance,
            resources=asset_resources(),
            selection=[asset_key("small", "registered_model")],
        )
    bring_up_to_date(loosened)
    assert champion().startswith("1 ")
