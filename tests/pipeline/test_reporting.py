"""What is made is reported once, whatever happens between the artifact and MLflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest

from alignment.recipe import Recipe, parse_recipe
from alignment_dags.run.launch import launches
from alignment_dags.run.plan import plan
from alignment_dags.run.run import follow_source
from alignment_dags.run.workspace import Workspace
from assets.building.upstream import Upstream
from resources.mlflow import Tracking, TrackingUnreachable
from resources.pools import load_pools


def test_an_artifact_that_was_made_and_not_reported_is_only_reported_by_the_next_run(
    small_recipe: dict[str, Any], bring_up_to_date: Callable[[Recipe], Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse_recipe(small_recipe, "-", {})
    report = Tracking.report

    def unreachable(self: Tracking, one: Any) -> Any:
        if one.asset == "policy_checkpoint":
            raise TrackingUnreachable("MLflow is away")
        return report(self, one)

    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "report", unreachable)
        with pytest.raises(dg.Failure, match="MLflow is away"):
            bring_up_to_date(recipe)
    from resources.store import ArtifactStore

    store = ArtifactStore().open()
    (made,) = store.commits("policy_checkpoint")
    states = {one.node.name: one.state for one in plan(Workspace(recipe, load_pools(), lambda: store))}
    assert states["policy_checkpoint"] == "unreported"

    upstream = bring_up_to_date(recipe)

    (still,) = store.commits("policy_checkpoint")
    assert still == made, "the checkpoint was trained again"
    client = Tracking().client()
    experiment = client.get_experiment_by_name(recipe.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`align.key` = '{made.key}'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    ref = upstream.ref("policy_checkpoint")
    assert ref is not None
    assert ref.mlflow_run_id == runs[0].info.run_id


def test_what_a_new_or_wiped_dagster_does_not_know_is_launched_again(
    small_recipe: dict[str, Any], bring_up_to_date: Callable[[Recipe], Upstream]
) -> None:
    recipe = parse_recipe(small_recipe, "-", {})
    bring_up_to_date(recipe)
    from resources.store import ArtifactStore

    store = ArtifactStore().open()
    workspace = Workspace(recipe, load_pools(), lambda: store)

    def launched(instance: dg.DagsterInstance) -> dict[str, list[str]]:
        """Phase to the nodes of its Dagster runs."""
        return {
            phase.name: [name for _, chosen in launches(instance, workspace, phase) for name in chosen]
            for phase in workspace.phases
        }

    with dg.DagsterInstance.get() as instance:
        follow_source(instance, workspace)
        assert launched(instance) == {"base": [], "shards": [], "reference": [], "train": []}
        wiped = ("sft_checkpoint", "reference_logprobs", "policy_checkpoint")
        instance.wipe_assets([dg.AssetKey(["small", name]) for name in wiped])
        assert launched(instance) == {
            "base": ["sft_checkpoint"],
            "shards": [],
            "reference": ["reference_logprobs"],  # one run over both shards
            "train": ["policy_checkpoint"],
        }
    assert {one.state for one in plan(workspace)} == {"current"}, "all of it is there: nothing is made"


def test_a_materialization_shows_numbers_links_and_where_its_artifact_is(
    small_recipe: dict[str, Any], bring_up_to_date: Callable[[Recipe], Upstream]
) -> None:
    bring_up_to_date(parse_recipe(small_recipe, "-", {}))
    with dg.DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["small", "policy_checkpoint"]))
        assert event is not None
        materialization = event.asset_materialization
        assert materialization is not None
        values = {name: value.value for name, value in materialization.metadata.items()}
        shard = dg.AssetKey(["small", "reference_logprobs"])
        records = instance.fetch_materializations(shard, limit=10).records
        report = instance.get_latest_materialization_event(dg.AssetKey(["small", "evaluation_report"]))
    assert values["rows_trained"] > 0
    assert "data:image/png;base64," in str(values["training"])
    assert str(values["dagster/uri"]).startswith("file://")
    assert "/#/experiments/" in str(values["mlflow"])
    assert report is not None and report.asset_materialization is not None
    shown = report.asset_materialization.metadata
    assert list(shown)[3] == "comparison" and list(shown)[:3] == ["verdict", "report", "gate"]
    links = [name for name, value in shown.items() if isinstance(value, dg.UrlMetadataValue)]
    assert links == ["report", "mlflow"]
    assert "/artifacts/report.html?" in str(shown["report"].value)
    versions = {
        record.partition_key: record.asset_materialization.tags["dagster/data_version"]
        for record in records
        if record.asset_materialization and record.asset_materialization.tags
    }
    assert len(versions) == 2
    assert len(set(versions.values())) == 2, "each shard has a data version of its own"
