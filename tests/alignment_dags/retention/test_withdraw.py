"""What `align prefs withdraw` and `find` know: records as they stand already, and shards that a recipe had before."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from alignment.data.files import pin_file
from alignment.data.rows import paired_row
from alignment.data.withdrawal import Tombstone, bury, read_withdrawn, tombstone
from alignment.errors import BadInput
from alignment.stages import execute
from alignment.stages.preference_shard import STAGE, ShardRequest
from alignment.stages.sft_dataset import STAGE as DATASET
from alignment.stages.sft_dataset import SftDatasetRequest
from alignment.store import Artifact, Ref, Store
from alignment_dags.cli.output import show_backfill
from alignment_dags.retention.text import withdrawn_text
from alignment_dags.retention.withdraw import (
    find_rows,
    former_shards,
    show_found,
    show_withdrawal,
    withdraw,
    withdrawn_elsewhere,
)
from resources.store import ArtifactStore

ROW = paired_row("p", "c", "r", "-", 1).row_id


@pytest.fixture
def store(home: Path) -> Store:
    return ArtifactStore().open()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "team.yaml"
    (tmp_path / "now.jsonl").write_text(json.dumps({"prompt": "q", "chosen": "c", "rejected": "r"}), encoding="utf-8")
    text = "name: team\nbase_model: {embedded: micro}\nsft: {adopt: {embedded: micro}}\npreferences: {files: [%s]}\n"
    path.write_text(text % json.dumps(str(tmp_path / "now.jsonl")), encoding="utf-8")
    return path


@pytest.fixture
def shard(store: Store, tmp_path: Path) -> Artifact:
    path = tmp_path / "web.jsonl"
    path.write_text(json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"}) + "\n", encoding="utf-8")
    return execute(STAGE, ShardRequest(file=pin_file(str(path))), store).artifact


def recorded(store: Store, kind: str, name: str, shard: Artifact, recipe: str = "team") -> Artifact:
    """An artifact that a recipe made of a shard; nothing refers to it."""
    return store.commit(
        store.begin(kind, "k"),
        digest=f"of {kind}",
        stage=kind,
        code_version=1,
        inputs={name: shard},
        summary={},
        environment={"recipe": recipe},
        started_at="",
        seconds=0.0,
    ).artifact


def test_a_second_withdrawal_keeps_the_first_time_and_the_reason_unless_it_gives_one(
    store: Store, shard: Artifact, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_ref(Ref(artifact=shard), "team", "preference_shard", "web")
    for at, reason in (("06:00:59", "a licence that ended"), ("06:41:35", ""), ("07:00:00", "she asked")):
        monkeypatch.setattr("alignment_dags.retention.withdraw.now", lambda at=at: at)
        withdraw(recipe, [ROW], ["web"], reason)
        for stone in (tombstone(store, "team", "rows", ROW), tombstone(store, "team", "shards", "web")):
            assert stone is not None and stone.at == "06:00:59"
            assert stone.reason == (reason or "a licence that ended")
            assert stone.because == []


@pytest.mark.parametrize("record", ["preference_manifest", "reference_logprobs"])
def test_a_shard_that_was_left_out_can_be_withdrawn_and_its_text_goes(
    store: Store, shard: Artifact, recipe: Path, record: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if record == "preference_manifest":
        recorded(store, record, "shards.web-web", shard)
    else:
        scored = recorded(store, record, "shard", shard, "another recipe, which scored the same rows first")
        store.write_ref(Ref(artifact=scored), "team", record, "web-web")
    assert former_shards(store, "team") == {"web-web": {shard}}
    (found,) = find_rows(recipe, "p")["rows"]
    assert found == {"row_id": ROW, "shard": "web-web", "source": "web.jsonl", "source_row": 1, "left_out": True}
    show_found({"rows": [found]})
    assert capsys.readouterr().out == f"{ROW}  web-web, left out by now: web.jsonl row 1\n1 row holds it\n"
    assert withdrawn_text(store, ["team"], set()) == ([], [])
    told = withdraw(recipe, [], ["web-web"], "")
    assert told["source"] == [str(recipe.parent / "web.jsonl")] and told["same_records"] == {}
    (erased,), kept = withdrawn_text(store, ["team"], set())
    assert (erased.key, erased.why, kept) == (shard.key, "shard web-web of team was withdrawn", [])


def test_a_shard_that_nothing_names_is_not_known_and_those_before_are_told(
    store: Store, shard: Artifact, recipe: Path
) -> None:
    recorded(store, "preference_manifest", "shards.web-web", shard)
    with pytest.raises(BadInput, match="no shard web in team; it has now, and had web-web"):
        withdraw(recipe, [], ["web"], "")
    recorded_elsewhere = former_shards(store, "other")
    assert recorded_elsewhere == {}


def test_whoever_withdraws_a_renamed_shard_is_told_what_else_is_left_out(
    store: Store, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = execute(STAGE, ShardRequest(file=pin_file(str(recipe.parent / "now.jsonl"))), store).artifact
    recorded(store, "preference_manifest", "shards.before", same)
    told = withdraw(recipe, [], ["before"], "")
    assert told["same_records"] == {"now": "now holds what was withdrawn as shard before"}
    show_withdrawal(told)
    assert "left out too: now holds what was withdrawn as shard before\n" in capsys.readouterr().out


def test_a_source_that_was_taken_out_is_left_out_and_not_withdrawn(capsys: pytest.CaptureFixture[str]) -> None:
    show_backfill(
        {"recipe": "team", "made": {}, "current": {}, "behind": {}, "failures": [], "shards": [], "seconds": 0}
        | {"withdrawn": ["web-web", "day-1"], "by_hand": ["day-1"]}
    )
    lines = capsys.readouterr().out.splitlines()
    stays = "its text stays until `align prefs withdraw team --shard web-web`"
    assert f"left out, because the source no longer has it: web-web ({stays})" in lines
    assert "left out, because it was withdrawn: day-1" in lines


def test_a_recipe_under_a_new_name_is_told_how_many_of_its_rows_the_old_one_withdrew(
    store: Store, shard: Artifact, tmp_path: Path
) -> None:
    store.write_ref(Ref(artifact=shard), "renamed", "preference_shard", "web")
    assert withdrawn_elsewhere(store, "renamed") == []
    bury(store, "team", "rows", [Tombstone(id=ROW, at="2026-01-01"), Tombstone(id="f" * 32, at="2026-01-01")])
    advice = "`align prefs withdraw` here too, if they have to go"
    assert withdrawn_elsewhere(store, "renamed") == [f"1 of its rows was withdrawn from recipe team: {advice}"]
    assert withdrawn_elsewhere(store, "team") == []
    bury(store, "renamed", "rows", [Tombstone(id=ROW, at="2026-01-01")])
    assert withdrawn_elsewhere(store, "renamed") == []

    stone = Tombstone(id="mail", at="2026-01-01", artifacts=[shard.key])
    bury(store, "team", "shards", [stone, Tombstone(id="web", at="2026-01-01", artifacts=["other records"])])
    assert withdrawn_elsewhere(store, "renamed") == [f"shard web was withdrawn from recipe team: {advice}"]
    data = tmp_path / "sft.jsonl"
    data.write_text(json.dumps({"prompt": "p", "completion": "c"}), encoding="utf-8")
    request = SftDatasetRequest(files=[pin_file(str(data))], seed=0, held_out_fraction=0.0)
    dataset = execute(DATASET, request, store).artifact
    (learned,) = pq.read_table(store.fetch(dataset) / "train.parquet")["row_id"].to_pylist()
    store.write_ref(Ref(artifact=dataset), "renamed", "sft_dataset")
    bury(store, "team", "demonstrations", [Tombstone(id=learned, at="2026-01-01")])
    both = f"1 of its rows and shard web were withdrawn from recipe team: {advice}"
    assert withdrawn_elsewhere(store, "renamed") == [both]
    bury(store, "renamed", "demonstrations", [Tombstone(id=learned, at="2026-01-01")])
    bury(store, "renamed", "shards", [stone.model_copy(update={"id": "web"})])
    assert withdrawn_elsewhere(store, "renamed") == []
    assert read_withdrawn(store, "renamed").rows == {ROW}
