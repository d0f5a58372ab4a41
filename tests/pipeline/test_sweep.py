"""A sweep: every point is trained and evaluated over one reference pass, and its winner is the policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from alignment.data.withdrawal import Tombstone, bury
from alignment.models.checkpoint import load_model
from alignment.recipe import Recipe, load_recipe
from alignment.stages.stage import ManifestSummary, PolicySummary, ReferenceSummary
from alignment_dags.nights.state import state_of
from alignment_dags.planner.forecast import forecast
from alignment_dags.run.workspace import Workspace
from assets.building.upstream import Upstream
from assets.soups import last_champions
from eval.gate.sweep import SweepSummary
from eval.stages.evaluation_report import ReportSummary
from eval.suites.samples import read_samples
from resources.pools import load_pools

GATE = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}, "any_improves": False}


@pytest.fixture
def recipe(small_recipe: dict[str, Any], tmp_path: Path) -> Recipe:
    small_recipe["optimise"] = {"method": "dpo", "precision": "float32", "learning_rate": 1e-3, "batch_size": 8}
    del small_recipe["dpo"]
    path = tmp_path / "recipe.yaml"
    sweep = {"beta": [0.05, 0.1, 0.2], "rows": [16]}
    path.write_text(yaml.safe_dump(small_recipe | {"sweep": sweep, "gate": GATE}), encoding="utf-8")
    return load_recipe(path)


def test_points_share_the_reference_and_only_a_confirmed_winner_passes(
    recipe: Recipe, bring_up_to_date: Callable[..., Upstream]
) -> None:
    with pytest.raises(Exception, match=r"sweep against the adopted model"):
        bring_up_to_date(recipe)
    workspace = Workspace(recipe, load_pools())
    upstream = workspace.upstream()
    store = upstream.store
    names = ["point_beta_0_05_rows_16", "point_beta_0_1_rows_16", "point_beta_0_2_rows_16"]
    points = {name: store.commit_of(upstream(f"{name}/policy_checkpoint")) for name in names}
    assert len({commit.digest for commit in points.values()}) == 3
    assert {PolicySummary.of(commit).rows_trained for commit in points.values()} == {16}
    whole, part = (
        ManifestSummary.of(store.commit_of(upstream(name)))
        for name in ("preference_manifest", "rows_16/preference_manifest")
    )
    assert (part.train, part.held_out) == (16, whole.held_out)

    passes = [ReferenceSummary.of(commit) for commit in store.commits("reference_logprobs")]
    assert sum(one.scored for one in passes) == 2 * sum(one.rows for one in passes), "one reference pass"
    assert len(list(store.commits("policy_checkpoint"))) == 3, "the winner is one of the points"

    sweep = SweepSummary.of(store.commit_of(upstream("sweep_report")))
    assert list(sweep.points) == names and sweep.metric == "ifeval/prompt_level_strict_acc"
    policy = upstream("policy_checkpoint")
    assert policy == points[sweep.picked].artifact
    assert not sweep.confirmed, "two layers of random weights follow no instruction"
    commit = store.commit_of(upstream("evaluation_report"))
    report = ReportSummary.of(commit)
    assert report.verdict == "inconclusive" and any("sweep against the adopted model" in why for why in report.reasons)
    items = len(read_samples(store.fetch(upstream("policy_evals/ifeval"))))
    counted = report.comparisons["ifeval"]["prompt_level_strict_acc"].n
    assert counted == sweep.points[sweep.picked].confirming.n < items, "the half that picked is not counted"
    page = (store.fetch(commit.artifact) / "report.html").read_text(encoding="utf-8")
    assert "Points of the sweep" in page and "data:image/png;base64," in page and "beta 0.05, rows 16" in page

    assert [stage.stage for stage in forecast(workspace) if stage.to_make] == ["registered_model"]
    assert state_of(workspace).train == ("registered_model",)


def test_averages_are_candidates_for_the_price_of_evaluating_and_the_policy_alone_is_one_of_them(
    small_recipe: dict[str, Any], tmp_path: Path, bring_up_to_date: Callable[..., Upstream]
) -> None:
    """The champion of the second training is an average with that of the first; one that was withdrawn from is not."""
    small_recipe["optimise"] = {"method": "dpo", "precision": "float32", "learning_rate": 1e-3, "batch_size": 8}
    del small_recipe["dpo"]
    path = tmp_path / "recipe.yaml"

    def use(**changes: Any) -> Recipe:
        path.write_text(yaml.safe_dump(small_recipe | {"gate": GATE} | changes), encoding="utf-8")
        return load_recipe(path)

    first = bring_up_to_date(use())("policy_checkpoint")
    small_recipe["optimise"] |= {"learning_rate": 2e-3}
    recipe = use(soups={"sft": [0.25], "champions": [1, 3]})
    names = list(recipe.soups.points) if recipe.soups else []
    assert names == ["soup_alone", "soup_sft_0_25", "soup_champions_1", "soup_champions_3"]
    workspace = Workspace(recipe, load_pools())
    to_make = {stage.stage: stage.to_make for stage in forecast(workspace)}
    assert all(to_make[f"{name}/policy_responses"] == 1 for name in names), "each is priced"
    assert to_make["trained/policy_checkpoint"] == 1 and to_make["reference_logprobs"] == 0
    with pytest.raises(Exception, match=r"sweep against the adopted model"):
        bring_up_to_date(recipe)
    upstream = workspace.upstream()
    store = upstream.store
    trained, sft = upstream("trained/policy_checkpoint"), upstream("sft_checkpoint")
    made = {name: store.commit_of(upstream(f"{name}/policy_checkpoint")) for name in names}
    assert [PolicySummary.of(commit).merged for commit in made.values()] == [
        {"policy": 1.0},
        {"policy": 0.75, "sft": 0.25},
        {"policy": 0.5, "champion": 0.5},
        {"policy": 0.5, "champion": 0.5},
    ], "there is one champion"
    assert made["soup_alone"].digest == trained.digest, "the same weights"
    assert made["soup_champions_1"].inputs["parts.champion"] == first != trained
    weights = [load_model(store.fetch(each), "float32").state_dict() for each in (trained, sft)]
    average = load_model(store.fetch(made["soup_sft_0_25"].artifact), "float32").state_dict()
    for name, tensor in average.items():
        torch.testing.assert_close(tensor, 0.75 * weights[0][name] + 0.25 * weights[1][name])

    choice = SweepSummary.of(store.commit_of(upstream("sweep_report")))
    assert list(choice.points) == names[:3], "the same average twice is one candidate"
    assert upstream("policy_checkpoint") == made[choice.picked].artifact and not choice.confirmed
    page = (store.fetch(upstream("evaluation_report")) / "report.html").read_text(encoding="utf-8")
    assert "Averages as candidates" in page and "0.25 of the SFT checkpoint" in page and "the policy alone" in page
    assert [stage.stage for stage in forecast(workspace) if stage.to_make] == ["registered_model"]
    assert state_of(workspace).train == ("registered_model",)

    rows = pq.read_table(store.fetch(first) / "training_rows.parquet").filter(pc.field("split") == "train")
    bury(store, "small", "rows", [Tombstone(id=rows["row_id"][0].as_py(), at="2026-01-01T00:00:00+00:00")])
    assert last_champions(Upstream(store, "small"), trained, 3) == [], "a row that was withdrawn is in its weights"
