"""Rows of a kind that the method cannot train on are refused before anything is trained."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from alignment.data.rows import read_rows
from alignment.data.validate import first_kind
from alignment.errors import BadInput
from alignment.methods import METHODS, wrong_kind
from alignment.recipe import load_recipe
from alignment.stages import execute
from alignment_dags.cli.setup import recipes_check
from alignment_dags.planner.forecast import forecast
from alignment_dags.run.run import run_recipe
from alignment_dags.run.workspace import Workspace
from alignment_dags.source.observe import observe
from assets.building.upstream import Upstream
from assets.preference_shard import preference_shard
from resources.pools import load_pools
from resources.store import ArtifactStore

TOLD = (
    r"holds unpaired rows \(a completion with its label\), and method: dpo takes paired ones \(a chosen and a "
    r"rejected completion\); kto would take them$"
)
UNPAIRED = {"prompt": "p", "completion": "c", "label": True}
PAIRED = {"prompt": "p", "chosen": "c", "rejected": "r"}


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe over preference files."""

    def of(*files: str, **preferences: Any) -> Path:
        embedded = {"embedded": "micro"}
        plain = {
            "name": "r",
            "base_model": embedded,
            "sft": {"dataset": embedded, "max_length": 256},
            "tokens": {"max_length": 256},
        }
        path = tmp_path / "r.yaml"
        path.write_text(yaml.safe_dump(plain | {"preferences": {"files": list(files), **preferences}}))
        return path

    return of


def made() -> set[str]:
    store = ArtifactStore().open()
    return {kind for kind in ("base_model", "sft_checkpoint", "preference_shard") if list(store.commits(kind))}


@pytest.mark.parametrize("split_into", [1, 2])
def test_unpaired_files_are_refused_by_every_door_before_anything_is_made(
    tmp_path: Path, recipe_of: Callable[..., Path], split_into: int
) -> None:
    good = write(tmp_path / "a.jsonl", PAIRED, PAIRED | {"prompt": "q"})
    bad = write(tmp_path / "b.jsonl", {"no": "row"}, UNPAIRED, UNPAIRED | {"prompt": "q"})
    path = recipe_of(good, f"file://{bad}", split_into=split_into)
    recipe = load_recipe(path)
    doors: list[Callable[[], Any]] = [
        lambda: recipes_check([path]),
        lambda: forecast(Workspace(recipe, load_pools())),
        lambda: run_recipe(path, print),
    ]
    for door in doors:
        with pytest.raises(BadInput, match=rf"^{bad}: {TOLD}"):
            door()
    assert made() == set()


def test_files_whose_kind_cannot_be_seen_at_once_are_made_into_shards_before_sft_trains(
    recipe_of: Callable[..., Path], s3: str, align_process: Callable[..., tuple[int, dict[str, Any], str]]
) -> None:
    url = f"{s3}/{uuid.uuid4().hex}/b.jsonl"
    with fsspec.open(url, "wt") as file:
        file.write(json.dumps(UNPAIRED) + "\n")
    path = recipe_of(url)
    recipes_check([path])
    code, _, error = align_process("run", str(path))
    assert code == 2 and re.search(rf"b\.jsonl: {TOLD}", error.strip())
    assert made() == {"preference_shard"}
    with pytest.raises(BadInput, match=TOLD):
        forecast(Workspace(load_recipe(path), load_pools()))


def test_one_file_among_others_is_named_by_the_source_watch_and_a_backfill(
    tmp_path: Path, recipe_of: Callable[..., Path], align_process: Callable[..., tuple[int, dict[str, Any], str]]
) -> None:
    files = write(tmp_path / "a.jsonl", PAIRED), write(tmp_path / "b.jsonl", UNPAIRED)
    path = recipe_of(*files, settle_seconds=0)
    recipe = load_recipe(path)
    store = ArtifactStore().open()
    seen = observe(recipe, preference_shard(recipe), Upstream(store, recipe.name))
    assert list(seen.keys) == ["a"] and list(seen.unreadable) == ["b"]
    assert "b.jsonl: holds unpaired rows" in seen.unreadable["b"]
    # definitions load once a process
    code, told, _ = align_process("backfill", str(path), "--stage", "preference_shard")
    assert (code, told["made"]["preference_shard"]) == (1, ["a"]), told["failures"]
    assert [failure for failure in told["failures"] if failure.startswith("b: ") and "unpaired rows" in failure]


@pytest.mark.parametrize(
    ("records", "kind"),
    [
        ([PAIRED, UNPAIRED], "paired"),
        ([UNPAIRED, PAIRED], "unpaired"),
        ([{}] * 5 + [UNPAIRED], "unpaired"),
        ([{}] * 200 + [UNPAIRED], None),
        ([], None),
    ],
)
def test_the_first_valid_record_says_what_kind_a_file_is(
    tmp_path: Path, records: list[dict[str, Any]], kind: str | None
) -> None:
    assert first_kind(write(tmp_path / "a.jsonl", *records)) == kind


def test_the_kind_shows_without_reading_a_file_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, UNPAIRED)
    with path.open("ab") as file:
        file.truncate(1 << 40)  # a hole of a terabyte, which nobody reads in a test's time
    assert first_kind(str(path)) == "unpaired"
    assert first_kind(str(tmp_path / "none.jsonl")) is None


@pytest.mark.real_data
def test_published_files_show_their_kind(real_data: Path) -> None:
    kinds = {
        "demo/kto_en_demo.json": "unpaired",
        "demo/dpo_en_demo.json": "paired",
        "hh_rlhf/harmless-base.test.jsonl.gz": "paired",
    }
    assert {name: first_kind(str(real_data / name)) for name in kinds} == kinds


def test_a_method_for_labelled_rows_takes_pairs_as_well() -> None:
    for name, method in METHODS.items():
        needed = {"label_smoothing": 0.1} if "label_smoothing" in method.settings() else {}
        refused = wrong_kind(method(**needed), "unpaired")
        assert wrong_kind(method(**needed), "paired") is None
        assert (refused is None) == (name == "kto") and (refused is None or refused.endswith("; kto would take them"))


def test_with_kto_files_of_both_kinds_become_shards_of_labelled_rows(
    tmp_path: Path, recipe_of: Callable[..., Path]
) -> None:
    """A pair is two rows, by chosen and rejected; a file that held them for DPO is made into another shard."""
    files = write(tmp_path / "a.jsonl", PAIRED, PAIRED | {"rejected": "s"}), write(tmp_path / "b.jsonl", UNPAIRED)
    path = recipe_of(*files, settle_seconds=0)
    path.write_text(path.read_text() + "dpo: {loss: kto}\n")
    recipe, store = load_recipe(path), ArtifactStore().open()
    recipes_check([path])
    forecast(Workspace(recipe, load_pools()))
    node, upstream = preference_shard(recipe), Upstream(store, recipe.name)
    assert observe(recipe, node, upstream).names == {"a", "b"}
    for name, expected in {
        "a": [("p", "c", True), ("p", "r", False), ("p", "s", False)],
        "b": [("p", "c", True)],
    }.items():
        commit = execute(node.stage, node.request(upstream, name), store)
        found = read_rows(store.fetch(commit.artifact) / "rows.parquet")
        assert [(row.prompt, row.completion, row.label) for row in found] == expected
        assert commit.summary["kind"] == "unpaired"
        assert commit.summary["duplicates"] == (name == "a"), "the chosen side of both pairs is one row"
    plain = load_recipe(recipe_of(*files, settle_seconds=0))
    unsplit = preference_shard(plain).request(Upstream(store, plain.name), "a")
    assert node.stage.key(unsplit) != node.stage.key(node.request(upstream, "a"))
