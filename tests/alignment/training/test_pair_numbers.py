"""Weights and target margins from a column of the data to the step that is trained with them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from alignment.data.files import pin_file
from alignment.data.rows import read_rows
from alignment.errors import BadInput
from alignment.recipe import Reading
from alignment.stages import execute, preference_manifest, preference_shard
from alignment.stages.policy_checkpoint import STAGE
from alignment.stages.preference_manifest import ManifestRequest
from alignment.stages.preference_shard import ShardRequest

READING = Reading(weight_column="meta.trust", margin_column="gap")


def record(number: int, trust: Any = 1.0, gap: Any = 0.5) -> dict[str, Any]:
    return {"prompt": f"p{number}", "chosen": "c", "rejected": "r", "meta": {"trust": trust}, "gap": gap}


def shard_of(lab: Any, folder: Path, records: list[dict[str, Any]], reading: Reading = READING) -> Any:
    path = folder / f"pairs-{lab.made}.jsonl"
    lab.made += 1
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return execute(preference_shard.STAGE, ShardRequest(file=pin_file(str(path)), reading=reading), lab.store)


def test_the_columns_that_a_recipe_names_are_read_and_rows_without_a_usable_number_are_set_aside_by_name(
    lab: Any, tmp_path: Path
) -> None:
    wrong = [{"trust": None}, {"trust": -0.1}, {"trust": math.nan}, {"trust": True}, {"gap": "wide"}, {"gap": math.inf}]
    records = [record(0), record(1, 0, "-2.5"), *(record(2 + at, **numbers) for at, numbers in enumerate(wrong))]
    missing = record(9)
    del missing["gap"]
    commit = shard_of(lab, tmp_path, [*records, missing])
    folder = lab.store.fetch(commit.artifact)
    rows = read_rows(folder / "rows.parquet")
    assert [(row.weight, row.margin) for row in rows] == [(1.0, 0.5), (0.0, -2.5)]
    assert commit.summary["reasons"] == {
        "margin is not a finite number": 2,
        "negative weight": 1,
        "no margin": 1,
        "no weight": 1,
        "weight is not a finite number": 2,
    }
    plain = shard_of(lab, tmp_path, records, Reading())
    ignored = read_rows(lab.store.fetch(plain.artifact) / "rows.parquet")
    assert len(ignored) == len(records) and {(row.weight, row.margin) for row in ignored} == {(None, None)}
    assert [row.row_id for row in ignored[:2]] == [row.row_id for row in rows]


def test_numbers_count_in_a_shards_digest_and_in_a_manifests_only_where_training_reads_them(
    lab: Any, tmp_path: Path
) -> None:
    one, other = (shard_of(lab, tmp_path, [record(0, trust), record(1)]) for trust in (1.0, 2.0))
    again = shard_of(lab, tmp_path, [record(1), record(0, 1.0)])
    assert one.digest == again.digest != other.digest

    def manifest(shard: Any, **more: Any) -> str:
        request = ManifestRequest(shards={"one": shard.artifact}, held_out_fraction=0.0, **more)
        return str(execute(preference_manifest.STAGE, request, lab.store).digest)

    assert manifest(one) == manifest(other)
    assert manifest(one, reads_numbers=True) != manifest(other, reads_numbers=True)
    assert manifest(one, reads_numbers=True) == manifest(again, reads_numbers=True)


def test_a_step_is_trained_on_the_weighted_loss_and_the_target_margins_of_its_rows(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    weights = [0.0, 0.5, 1.0, 4.0]
    rows = [replace(row, weight=weight, margin=weight - 1) for row, weight in zip(lab.rows(4), weights, strict=True)]
    manifest = lab.manifest(checkpoint, rows)
    weighted = execute(STAGE, lab.dpo_request(checkpoint, manifest, weighted=True), lab.store)
    assert weighted.summary["first_loss"] == pytest.approx(math.log(2) * sum(weights) / 4, abs=1e-5)
    assert weighted.summary["agreement"]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    aware = execute(STAGE, lab.dpo_request(checkpoint, manifest, target_margin="column"), lab.store)

    def divergence(target: float) -> float:
        """D[0‖b]: of a policy that is its reference."""
        up = 1 / (1 + math.exp(-target))
        return up * math.log(2 * up) + (1 - up) * math.log(2 * (1 - up))

    expected = sum(divergence(weight - 1) for weight in weights) / 4
    assert aware.summary["first_loss"] == pytest.approx(expected, abs=1e-5)
    assert aware.summary["agreement"]["expected_loss"] == pytest.approx(expected, abs=1e-5)
    scored = [
        replace(row, chosen_score=weight, rejected_score=1.0)
        for row, weight in zip(lab.rows(4, seed=1), weights, strict=True)
    ]
    by_scores = lab.dpo_request(checkpoint, lab.manifest(checkpoint, scored), target_margin="scores")
    assert execute(STAGE, by_scores, lab.store).summary["first_loss"] == pytest.approx(expected, abs=1e-5)
    trained = pq.read_table(lab.store.fetch(weighted.artifact) / "training_rows.parquet")
    assert len(trained) == 4


def test_a_pair_of_weight_0_moves_nothing(lab: Any) -> None:
    checkpoint = lab.checkpoint()
    rows = [replace(row, weight=0.0) for row in lab.rows(4)]
    made = execute(STAGE, lab.dpo_request(checkpoint, lab.manifest(checkpoint, rows), weighted=True), lab.store)
    assert made.summary["weights_digest"] == lab.store.commit_of(checkpoint).summary["weights_digest"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"weighted": True}, r"has no weight: preferences\.weight_column names its column"),
        ({"target_margin": "column"}, r"has no target_margin: preferences\.margin_column names its column"),
        ({"target_margin": "scores"}, r"min_score_gap: 0 quarantines pairs without"),
    ],
)
def test_a_row_that_lacks_what_the_method_reads_is_named_before_anything_trains(
    lab: Any, settings: dict[str, Any], told: str
) -> None:
    checkpoint = lab.checkpoint()
    request = lab.dpo_request(checkpoint, lab.manifest(checkpoint, lab.rows(4)), **settings)
    with pytest.raises(BadInput, match=told) as caught:
        execute(STAGE, request, lab.store)
    assert "(pairs.jsonl row " in str(caught.value) and "\n" not in str(caught.value)
