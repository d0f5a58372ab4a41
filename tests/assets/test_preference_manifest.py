"""Which shards a manifest is asked over: those recorded, whatever the source shows at this moment."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from alignment.data.rows import read_rows
from alignment.data.withdrawal import Tombstone, bury, now
from alignment.errors import BadInput
from alignment.recipe import Recipe, parse_recipe
from alignment.stages import execute
from alignment.stages.preference_manifest import ManifestRequest
from alignment.store import Artifact, Ref, Store
from assets.building.upstream import Upstream
from assets.graph import nodes_of
from resources.pools import load_pools
from resources.store import ArtifactStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for day in ("day-0", "day-1"):
        (folder / f"{day}.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n', encoding="utf-8")
    return folder


@pytest.fixture
def recipe(folder: Path) -> Recipe:
    data = {
        "name": "night",
        "base_model": {"embedded": "micro"},
        "sft": {"dataset": {"embedded": "micro"}, "precision": "float32"},
        "preferences": {"files": [str(folder)]},
    }
    return parse_recipe(data, "-", {})


def record(store: Store, recipe: Recipe, *shards: str) -> None:
    """Refs as if the shards were built and scored."""
    nodes = {node.name: node for node in nodes_of(recipe, load_pools())}
    point(store, "sft_checkpoint", "sft", None)
    for shard in shards:
        for name in ("preference_shard", "reference_logprobs"):
            node = nodes[name]
            point(store, name, node.stage.key(node.request(Upstream(store, recipe.name), shard)), shard)


def point(store: Store, name: str, key: str, shard: str | None) -> None:
    artifact = Artifact(kind=name, key=key, attempt="a", digest=f"{name} {shard}")
    store.write_ref(Ref(artifact=artifact), "night", name, shard)


def asked(store: Store, recipe: Recipe) -> ManifestRequest:
    (node,) = [node for node in nodes_of(recipe, load_pools()) if node.name == "preference_manifest"]
    request = node.request(Upstream(store, recipe.name), None)
    assert isinstance(request, ManifestRequest)
    return request


def test_a_listed_shard_that_is_not_built_is_left_out_by_name(recipe: Recipe) -> None:
    store = ArtifactStore().open()
    record(store, recipe, "day-0")
    request = asked(store, recipe)
    assert (set(request.shards), request.left_out) == ({"day-0"}, {"day-1": "not built"})


def test_rows_that_the_source_holds_no_more_are_not_trained_on(recipe: Recipe, folder: Path) -> None:
    store = ArtifactStore().open()
    record(store, recipe, "day-0", "day-1")
    (folder / "day-1.jsonl").write_text('{"prompt": "other", "chosen": "c", "rejected": "r"}\n', encoding="utf-8")
    request = asked(store, recipe)
    assert (set(request.shards), set(request.references)) == ({"day-0"}, {"day-0"})
    assert request.left_out == {"day-1": "not built from what the source holds now"}


@pytest.mark.parametrize("harm", ["one file gone", "folder gone"])
def test_what_is_recorded_stays_until_it_is_withdrawn(recipe: Recipe, folder: Path, harm: str) -> None:
    store = ArtifactStore().open()
    record(store, recipe, "day-0", "day-1")
    before = asked(store, recipe)
    assert set(before.shards) == {"day-0", "day-1"}
    if harm == "folder gone":
        shutil.rmtree(folder)
    else:
        (folder / "day-1.jsonl").unlink()
    assert asked(store, recipe) == before
    store.remove_ref("night", "preference_shard", "day-1")
    after = asked(store, recipe)
    assert (set(after.shards), after.left_out) == ({"day-0"}, {})


def test_a_source_that_cannot_be_listed_before_anything_was_built_is_bad_input(recipe: Recipe, folder: Path) -> None:
    shutil.rmtree(folder)
    store = ArtifactStore().open()
    point(store, "sft_checkpoint", "sft", None)
    with pytest.raises(BadInput, match="no such file"):
        asked(store, recipe)


@pytest.mark.parametrize("folder_there", [True, False])
def test_a_withdrawn_shard_takes_no_part_while_its_ref_still_stands(
    recipe: Recipe, folder: Path, folder_there: bool
) -> None:
    store = ArtifactStore().open()
    record(store, recipe, "day-0", "day-1")
    bury(store, "night", "shards", [Tombstone(id="day-1", at=now())])
    if not folder_there:
        shutil.rmtree(folder)
    request = asked(store, recipe)
    assert set(request.shards) == {"day-0"}
    assert request.left_out in ({}, {"day-1": "withdrawn"})


def test_a_shard_with_withdrawn_rows_takes_no_part_though_its_source_cannot_be_read(
    recipe: Recipe, folder: Path
) -> None:
    store = ArtifactStore().open()
    record(store, recipe)
    node = next(node for node in nodes_of(recipe, load_pools()) if node.name == "preference_shard")
    made = execute(node.stage, node.request(Upstream(store, "night"), "day-1"), store)
    store.write_ref(Ref(artifact=made.artifact), "night", "preference_shard", "day-1")
    (row,) = read_rows(store.fetch(made.artifact) / "rows.parquet")
    bury(store, "night", "rows", [Tombstone(id=row.row_id, at=now())])
    for _ in range(2):
        left_out = asked(store, recipe).left_out
        assert left_out["day-1"] == "rows of it were withdrawn, and it was not built without them"
        shutil.rmtree(folder, ignore_errors=True)


def test_the_rows_of_several_sources_are_bounded_in_the_manifest_and_read_each_in_their_way(folder: Path) -> None:
    sources = [
        {"name": "all", "files": [str(folder)], "max_rows": 1},
        {"name": "some", "files": [str(folder / "day-1.jsonl")], "weight": 2.0, "columns": {"prompt": "chosen"}},
    ]
    recipe = parse_recipe(
        {
            "name": "night",
            "seed": 7,
            "base_model": {"embedded": "micro"},
            "sft": {"dataset": {"embedded": "micro"}, "precision": "float32"},
            "preferences": sources,
        },
        "-",
        {},
    )
    store = ArtifactStore().open()
    record(store, recipe, "all-day-0", "all-day-1", "some-day-1")
    request = asked(store, recipe)
    assert list(request.shards) == ["all-day-0", "all-day-1", "some-day-1"] and not request.left_out
    assert [(mix.shards, mix.weight, mix.max_rows, mix.seed) for mix in request.mix] == [
        (("preference_shard all-day-0", "preference_shard all-day-1"), None, 1, 7),
        (("preference_shard some-day-1",), 2.0, None, 7),
    ]
    shards = Upstream(store, recipe.name).shards(recipe)
    assert [(shards[name].seed, shards[name].reading.max_rows) for name in shards] == [(7, 1), (7, 1), (0, None)]
    assert shards["some-day-1"].reading.columns == {"prompt": "chosen"}


def test_one_source_without_bounds_has_no_mix(recipe: Recipe) -> None:
    store = ArtifactStore().open()
    record(store, recipe, "day-0", "day-1")
    assert asked(store, recipe).mix == ()
