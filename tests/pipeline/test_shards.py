"""One shard that cannot be made or named keeps no other from being made."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from alignment.errors import BadInput
from alignment.recipe import Recipe, parse_recipe
from alignment.store import Ref, Store
from alignment_dags.run.run import follow_source
from alignment_dags.run.workspace import Workspace
from assets.building.factory import BAD_INPUT, shards_definition
from assets.building.upstream import Upstream
from resources.pools import load_pools
from tests.loopback import signed_files

LONG = "長" * 80


@pytest.fixture
def recipe(small_recipe: dict[str, Any], shard_folder: Path) -> Recipe:
    return parse_recipe({**small_recipe, "preferences": {"files": [str(shard_folder)]}}, "-", {})


def test_a_file_of_a_name_too_long_is_a_shard_like_any_other_and_may_be_renamed(
    recipe: Recipe,
    shard_folder: Path,
    store_url: str,
    monkeypatch: pytest.MonkeyPatch,
    bring_up_to_date: Callable[..., Upstream],
) -> None:
    monkeypatch.setenv("ALIGN_STORE", store_url)
    (shard_folder / "day-1.jsonl").rename(shard_folder / f"{LONG}.jsonl")
    made = bring_up_to_date(recipe, only=("base", "shards", "reference"))
    names = set(made.shards(recipe))
    assert {"day-0", "day-2"} < names and len(names) == 3
    assert set(made.refs("preference_shard")) == set(made.refs("reference_logprobs")) == names

    (shard_folder / f"{LONG}.jsonl").rename(shard_folder / "day-1.jsonl")
    again = bring_up_to_date(recipe, only=("base", "shards", "reference"))
    assert set(again.refs("preference_shard")) == {"day-0", "day-1", "day-2"}
    keys = {ref.artifact.key for ref in made.refs("reference_logprobs").values()}
    assert {again("reference_logprobs", f"day-{day}").key for day in range(3)} == keys


def test_a_partition_that_an_older_version_named_too_long_is_withdrawn(
    recipe: Recipe, bring_up_to_date: Callable[..., Upstream]
) -> None:
    bring_up_to_date(recipe, only=("base", "shards"))
    partitions = shards_definition(recipe.name).name
    assert partitions is not None
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions(partitions, [LONG])
        follow_source(instance, Workspace(recipe, load_pools()))
        assert set(instance.get_dynamic_partitions(partitions)) == {"day-0", "day-1", "day-2"}


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), BadInput("no such thing")])
def test_an_error_of_one_shard_s_own_leaves_the_others_made(
    recipe: Recipe, bring_up_to_date: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    write_ref = Store.write_ref

    def fails(self: Store, ref: Ref, recipe: str, stage: str, partition: str | None = None) -> None:
        if partition == "day-1":
            raise error
        write_ref(self, ref, recipe, stage, partition)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_ref", fails)
        with pytest.raises(
            dg.Failure, match=rf"1 of 3 shards failed, the others are done: day-1: .*{re.escape(str(error))}"
        ) as failed:
            bring_up_to_date(recipe, only=("base", "shards"))
    assert (BAD_INPUT in failed.value.metadata) == isinstance(error, BadInput), "a broken disk is nobody's bad input"
    assert set(bring_up_to_date(recipe, only=()).refs("preference_shard")) == {"day-0", "day-2"}


def test_an_error_whose_text_holds_a_signature_is_recorded_without_it(
    recipe: Recipe, bring_up_to_date: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        try:
            raise RuntimeError("403 from https://host/a.jsonl?sig=s3cr3t")
        except RuntimeError as cause:
            raise RuntimeError("the store gives no answer") from cause

    monkeypatch.setattr(Store, "write_ref", fails)
    with pytest.raises(dg.Failure, match="RuntimeError: the store gives no answer"):
        bring_up_to_date(recipe, only=("base",))
    with dg.DagsterInstance.get() as instance:
        (run,) = instance.get_runs()
        assert "s3cr3t" not in "".join(str(entry.to_json()) for entry in instance.all_logs(run.run_id))


def test_a_presigned_url_leaves_its_signature_nowhere_and_is_the_same_shard_when_it_is_signed_anew(
    small_recipe: dict[str, Any],
    small_data: dict[str, str],
    home: Path,
    bring_up_to_date: Callable[..., Upstream],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", logger="dagster")
    files = {f"{name}.jsonl": Path(small_data[name]).read_bytes() for name in ("pairs", "ifeval")}
    keys = []
    with signed_files(files, lambda signature: signature.startswith("s1gned")) as bucket:
        for day in (1, 2):
            signed = {name: f"{bucket}/{name}.jsonl?signature=s1gned{day}&x=2" for name in ("pairs", "ifeval")}
            evals = {**small_recipe["evals"], "ifeval": {"data": signed["ifeval"], "max_new_tokens": 8}}
            data = {**small_recipe, "preferences": {"files": [signed["pairs"]]}, "evals": evals, "gate": "none"}
            made = bring_up_to_date(parse_recipe(data, "-", {}))
            assert set(made.refs("preference_shard")) == {"pairs"}
            keys.append([made(name).key for name in ("preference_manifest", "policy_responses", "evaluation_report")])
        launched = len(bring_up_to_date.launched)  # type: ignore[attr-defined]
    assert keys[0] == keys[1]
    assert launched == 4, "the second day made anything anew"
    assert "s1gned" not in caplog.text
    held = [file for file in home.rglob("*") if file.is_file() and b"s1gned" in file.read_bytes()]
    assert held == []
