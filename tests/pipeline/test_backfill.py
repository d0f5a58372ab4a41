"""`align backfill` over a folder: the chosen shards and no others, twice the same, and beside a bad one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from alignment.data import shards
from alignment.data.files import pin_file
from alignment.errors import BadInput
from alignment.recipe import load_recipe
from alignment.stages import SourceFile
from alignment_dags.recipes import RECIPES
from alignment_dags.run.run import Chosen, run_backfill, run_recipe
from assets.building.factory import shards_definition
from assets.building.upstream import Upstream

SHARD, REFERENCE = "preference_shard", "reference_logprobs"


def test_a_backfill_makes_what_is_behind_of_what_was_chosen(
    small_recipe: dict[str, Any],
    shard_folder: Path,
    tmp_path: Path,
    bring_up_to_date: Callable[..., Upstream],
    align_process: Callable[..., tuple[int, dict[str, Any], str]],
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe | {"preferences": {"files": [str(shard_folder)]}}), encoding="utf-8")

    def backfill(*chosen: str, code: int = 0) -> dict[str, Any]:
        found, told, error = align_process("backfill", str(path), *chosen)
        assert found == code, error
        return told | {"error": error}

    assert "no SFT checkpoint" in backfill(code=2)["error"]
    assert "'day-9'" in backfill("--shards", "day-9", "--stage", SHARD, code=2)["error"]
    made = bring_up_to_date(load_recipe(path), only=("base",))
    with dg.DagsterInstance.get() as instance:
        for gone in instance.get_dynamic_partitions(str(shards_definition("small").name)):
            instance.delete_dynamic_partition(str(shards_definition("small").name), gone)

    one = backfill("--shards", "day-1")
    assert one["made"] == {SHARD: ["day-1"], REFERENCE: ["day-1"]}
    assert Upstream(made.store, "small").get(SHARD, "day-0") is None

    again = backfill("--from", "day-1", "--to", "day-1")
    assert (again["dagster_runs"], again["failures"]) == ([], [])
    assert again["current"] == {SHARD: ["day-1"], REFERENCE: ["day-1"]}

    (shard_folder / "bad.jsonl").write_text(
        json.dumps({"prompt": "p", "chosen": "same", "rejected": "same"}), encoding="utf-8"
    )
    (shard_folder / "day-2.jsonl").unlink()
    everything = backfill(code=1)
    assert everything["withdrawn"] == []
    assert everything["made"] == {SHARD: ["day-0"], REFERENCE: ["day-0"]}
    assert everything["behind"] == {SHARD: ["bad"], REFERENCE: ["bad"]}
    assert len(everything["failures"]) == 1
    assert "bad.jsonl" in everything["failures"][0]

    for name in ("bad", "day-0"):
        (shard_folder / f"{name}.jsonl").unlink()
    followed = backfill()
    assert followed["withdrawn"] == ["bad", "day-0"]
    assert (followed["dagster_runs"], followed["shards"]) == ([], ["day-1"])
    assert Upstream(made.store, "small").get(SHARD, "day-0") is None


def test_a_file_that_cannot_be_read_is_named_and_stops_a_run_before_it_starts(
    small_recipe: dict[str, Any],
    shard_folder: Path,
    tmp_path: Path,
    bring_up_to_date: Callable[..., Upstream],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe | {"preferences": {"files": [str(shard_folder)]}}), encoding="utf-8")
    monkeypatch.setenv(RECIPES, str(path))
    bring_up_to_date(load_recipe(path), only=("base", "shards"))
    (shard_folder / "day-0.jsonl").write_text(
        (shard_folder / "day-1.jsonl").read_text(encoding="utf-8"), encoding="utf-8"
    )

    def pin(url: str) -> SourceFile:
        if url.endswith("day-0.jsonl"):
            raise BadInput("cannot be read", file=url)
        return pin_file(url)

    monkeypatch.setattr(shards, "pin_file", pin)
    told = run_backfill(path, Chosen(shards=("day-0", "day-2")), SHARD, lambda line: None)
    assert told.failures == [f"day-0: {shard_folder / 'day-0.jsonl'}: cannot be read"]
    assert (told.behind, told.current) == ({SHARD: ["day-0"]}, {SHARD: ["day-2"]})
    with pytest.raises(BadInput, match=r"day-0.jsonl: cannot be read"):
        run_recipe(path, lambda line: None)
