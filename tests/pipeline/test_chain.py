"""A chain of trainings: each link starts from the result before it, and every sequence is forwarded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from alignment.data.manifest import SPLIT_FILE
from alignment.logprobs.table import LOGPROBS_FILE, logprobs_folder
from alignment.recipe import Recipe, load_recipe
from alignment.stages.stage import ManifestSummary, PolicySummary, ReferenceSummary
from alignment.training.held_out_pairs import HELD_OUT_FILE, parse_held_out
from alignment_dags.nights.state import state_of
from alignment_dags.planner.forecast import forecast
from alignment_dags.registry.compare import diff
from alignment_dags.registry.lineage import lineage_of
from alignment_dags.registry.rows import row_lineage
from alignment_dags.retention.collect import collect
from alignment_dags.run.workspace import Workspace
from assets.building.upstream import Upstream
from eval.stages.evaluation_report import ReportSummary
from resources.pools import load_pools

GATE = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}, "seeds": 2}
TRAINING = {"precision": "float32", "learning_rate": 1e-3, "batch_size": 8}


@pytest.fixture
def recipe(small_recipe: dict[str, Any], tmp_path: Path) -> Recipe:
    """DPO, SimPO on the pairs that are still contested, and DPO again, against the SFT checkpoint."""
    del small_recipe["dpo"]
    chain = [
        {"method": "dpo", **TRAINING},
        {"method": "simpo", **TRAINING, "select": {"disagreement": "20 %"}},
        {"method": "dpo", **TRAINING, "reference": "sft"},
        {"method": "ipo", **TRAINING},
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe | {"optimise": chain, "gate": GATE}), encoding="utf-8")
    return load_recipe(path)


def test_links_follow_each_other_and_forward_the_reference_once(
    recipe: Recipe, bring_up_to_date: Callable[..., Upstream]
) -> None:
    upstream = bring_up_to_date(recipe)
    store = upstream.store

    def policy(name: str) -> Any:
        return store.commit_of(upstream(name))

    links = [policy(f"link_{number}/policy_checkpoint") for number in (1, 2, 3)] + [policy("policy_checkpoint")]
    starts = [link.inputs["checkpoint"] for link in links]
    assert starts == [upstream("sft_checkpoint"), *(link.artifact for link in links[:-1])]
    assert [link.inputs.get("reference") for link in links] == [None, None, upstream("sft_checkpoint"), None]
    summaries = [PolicySummary.of(link) for link in links]
    first_losses = [summary.first_loss for summary in summaries]
    assert first_losses[0] == pytest.approx(0.693147, abs=1e-3), "the policy is its reference"
    assert abs(first_losses[2] - 0.693147) > 1e-2, "it has left the SFT checkpoint, its reference, behind"
    assert all(summaries[place].agreement["worst_nats"] < 1e-2 for place in (0, 2, 3))

    margins = []
    for link in links:
        held_out = parse_held_out(store.read(link.artifact, HELD_OUT_FILE))
        margins.append(sum(row.chosen_ratio - row.rejected_ratio for row in held_out) / len(held_out))
    assert margins == sorted(margins), "each link goes further from the SFT checkpoint, which all are measured against"
    assert margins[0] == pytest.approx(10 * summaries[0].held_out["margin"], rel=1e-4), "without beta"
    assert margins[3] > 1.5 * 10 * summaries[3].held_out["margin"] > 0, "the summary is by the link's own reference"

    passes = [ReferenceSummary.of(commit) for commit in store.commits("reference_logprobs")]
    rows = sum(one.rows for one in passes)
    assert sum(one.scored for one in passes) == 2 * rows, "each sequence once, for all four trainings"
    scored = [ReferenceSummary.of(commit) for commit in store.commits("policy_logprobs")]
    assert [one.scored for one in scored] == [2 * rows] * 2, "the policies of links 1 and 3, once each"

    first, second = upstream("preference_manifest"), upstream("link_2/preference_manifest")
    assert [link.inputs["manifest"] for link in links[:3]] == [first, second, first]
    kept, left = (ManifestSummary.of(store.commit_of(each)) for each in (first, second))
    assert left.train == -(-kept.train // 5) and left.held_out == kept.held_out
    assert summaries[1].rows_trained == left.train

    disagreement = {}
    for shard, reference in ((name, artifact) for name, artifact in store.commit_of(first).inputs.items()):
        if shard.startswith("references."):
            rows_of = store.commit_of(first).inputs[shard.replace("references.", "shards.")]
            folders = (
                logprobs_folder(store.fetch(upstream("link_1/policy_logprobs")), rows_of.digest),
                store.fetch(reference),
            )
            after, before = (pq.read_table(folder / LOGPROBS_FILE).to_pylist() for folder in folders)
            for one, other in zip(after, before, strict=True):
                margins = [side["chosen_logp"] - side["rejected_logp"] for side in (one, other)]
                disagreement[one["row_id"]] = margins[0] - margins[1]
    splits = [
        {row["row_id"]: row["split"] for row in pq.read_table(store.fetch(each) / SPLIT_FILE).to_pylist()}
        for each in (first, second)
    ]
    trained = sorted((margin, row) for row, margin in disagreement.items() if splits[0][row] == "train")
    assert {row for row, split in splits[1].items() if split == "train"} == {row for _, row in trained[: left.train]}

    again = policy("seed_1/policy_checkpoint")
    assert again.digest != links[-1].digest and again.inputs == links[-1].inputs, "another order of the same rows"
    report = ReportSummary.of(store.commit_of(upstream("evaluation_report")))
    assert report.verdict == "pass" and "2 trainings with other seeds gave" in report.reasons[-1]
    assert "Olmo 3 published 0.88" in report.reasons[-1]

    workspace = Workspace(recipe, load_pools())
    assert state_of(workspace).train == () and [one.stage for one in forecast(workspace) if one.to_make] == []
    record = lineage_of("small")
    assert record["sft"]["digest"] == upstream("sft_checkpoint").digest
    assert len(record["shards"]) == len({shard["digest"] for shard in record["shards"]}) == 2
    started = diff("small@1", "small")["checkpoints"]["sft"]
    assert started == [upstream("sft_checkpoint").digest] * 2, "not the link before"
    assert store.commit_of(upstream("policy_divergence")).inputs["sft"] == upstream("sft_checkpoint")

    (left_out, *_) = [row for row, split in splits[1].items() if split == "dropped" and splits[0][row] == "train"]
    found = {policy["digest"]: policy["split"] for policy in row_lineage(left_out)["policies"]}
    assert found == {link.digest: "train" for link in (*links, again)}, (
        "what link 1 was trained on is in all that follow it"
    )
    assert recipe.file is not None
    collect([recipe.file], keep=1, dry_run=False)
    assert [one.stage for one in forecast(workspace) if one.to_make] == [], "the weights of every link are in use"
