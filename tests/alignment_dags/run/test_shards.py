"""Two recipes of one name do not withdraw each other's shards; one may move, be edited and be checked out twice."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from alignment.recipe import Recipe, load_recipe
from alignment.store import Store
from alignment_dags.run import shards
from alignment_dags.run.run import run_recipe
from alignment_dags.run.shards import NameTaken, claim, claim_partitions
from alignment_dags.run.workspace import Workspace
from alignment_dags.source.sensor import watch
from resources.pools import load_pools

RECIPE = """
name: small
base_model: {{embedded: micro}}
sft: {{dataset: {{embedded: micro}}}}
preferences: {{files: ["{files}"], watch_seconds: {watch}}}
"""


def write(folder: Path, files: str = "${DATA:-/data}/*.jsonl", watch: int = 30) -> Recipe:
    folder.mkdir(exist_ok=True)
    path = folder / "small.yaml"
    path.write_text(RECIPE.format(files=files, watch=watch), encoding="utf-8")
    return load_recipe(path)


@pytest.fixture
def anywhere(store_url: str, tmp_path: Path) -> Store:
    return Store(store_url, cache=tmp_path / "cache")


def test_another_file_with_other_preferences_is_refused_by_name_and_told_what_to_do(
    anywhere: Store, tmp_path: Path
) -> None:
    claim(anywhere, write(tmp_path / "one"))
    other = write(tmp_path / "two", "/other/*.jsonl")
    for _ in range(2):
        with pytest.raises(NameTaken) as refused:
            claim(anywhere, other)
    told = str(refused.value)
    assert told.startswith(f"{tmp_path}/two/small.yaml, field 'name': 'small' is the name of {tmp_path}/one/small.yaml")
    assert "\n" not in told and "give one of them another name" in told
    anywhere.fs.rm_file(told.rpartition("remove ")[2])
    claim(anywhere, other)
    with pytest.raises(NameTaken):
        claim(anywhere, load_recipe(tmp_path / "one" / "small.yaml"))


def test_a_recipe_may_be_edited_moved_and_checked_out_twice(anywhere: Store, tmp_path: Path) -> None:
    claim(anywhere, write(tmp_path / "one"))
    claim(anywhere, write(tmp_path / "one", "/edited/*.jsonl"))
    for checkout in ("two", "one"):
        claim(anywhere, write(tmp_path / checkout, "/edited/*.jsonl", watch=5))
    (tmp_path / "one").rename(tmp_path / "moved")
    claim(anywhere, write(tmp_path / "moved", "/edited/again/*.jsonl"))
    (tmp_path / "moved" / "small.yaml").write_text("name: renamed\n", encoding="utf-8")
    claim(anywhere, write(tmp_path / "three", "/yet/others/*.jsonl"))


def test_a_file_of_another_host_is_taken_to_be_there(
    anywhere: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shards.socket, "gethostname", lambda: "elsewhere")
        claim(anywhere, write(tmp_path / "one"))
    (tmp_path / "one").rename(tmp_path / "moved")
    with pytest.raises(NameTaken, match="on elsewhere"):
        claim(anywhere, write(tmp_path / "moved", "/edited/*.jsonl"))
    claim(anywhere, write(tmp_path / "moved"))
    claim(anywhere, write(tmp_path / "moved", "/edited/*.jsonl"))


def test_a_recipe_that_no_file_holds_claims_nothing(anywhere: Store, tmp_path: Path) -> None:
    claim(anywhere, Recipe.model_validate(write(tmp_path / "one").written))
    assert not anywhere.fs.exists(anywhere.path("owners"))


def test_neither_a_run_nor_the_sensor_begins_with_a_name_that_is_taken(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(str(tmp_path / "store"), cache=tmp_path / "cache")
    monkeypatch.setenv("ALIGN_STORE", store.url)
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n', encoding="utf-8")
    claim(store, write(tmp_path / "one", f"{tmp_path}/one.jsonl"))
    other = write(tmp_path / "two", f"{tmp_path}/two.jsonl")
    assert other.file is not None
    with pytest.raises(NameTaken):
        run_recipe(other.file, print)
    with dg.instance_for_test() as instance:
        told = watch(instance, Workspace(other, load_pools(), lambda: store), None)
    assert told.run_requests == [] and "the source is not followed" in str(told.skip_reason)
    assert any("the source is not followed" in one.getMessage() for one in caplog.records)


def test_two_checkouts_with_stores_of_their_own_do_not_share_a_name_in_one_dagster(tmp_path: Path) -> None:
    one, other = (write(tmp_path / name, f"/{name}/*.jsonl") for name in ("one", "two"))
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        claim_partitions(instance, one)
        claim_partitions(instance, write(tmp_path / "one", "/edited/*.jsonl"))
        with pytest.raises(NameTaken, match=rf"two/small.yaml, field 'name': 'small' is the name of {one.file}") as no:
            claim_partitions(instance, other)
        assert "give one of them another name, or another DAGSTER_HOME" in str(no.value)
        told = watch(instance, Workspace(other, load_pools(), lambda: Store(str(tmp_path / "store"))), None)
        assert "the source is not followed" in str(told.skip_reason)
        claim_partitions(instance, write(tmp_path / "three", "/edited/*.jsonl"))  # a second checkout of the same
    with dg.instance_for_test() as elsewhere:
        claim_partitions(elsewhere, other)
