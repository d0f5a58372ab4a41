"""A person asks for their data to go: it leaves the next model, then every byte of it goes, and it stays away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from alignment.data.rows import is_held_out, read_rows, read_sft_rows
from alignment.data.withdrawal import RemainingShards
from alignment.errors import BadInput, counted
from alignment.logprobs.token_ids import count_token_ids
from alignment.recipe import load_recipe
from alignment.store import ErasedArtifact, Store
from alignment_dags.registry.ab import export_ballot
from alignment_dags.registry.export import export
from alignment_dags.registry.rows import row_lineage
from alignment_dags.retention.collect import collect
from alignment_dags.retention.evidence import evidence_of, measure_evidence
from alignment_dags.retention.withdraw import find_rows, restore, withdraw
from assets.building.upstream import Upstream
from resources.store import ArtifactStore

PLANTED = "Zyxquorl of Quimper"


def places(folder: Path, text: str) -> list[str]:
    """Every file that holds a text: as bytes, or in a cell of a Parquet file."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.suffix == ".parquet" and data:
            data += json.dumps(pq.read_table(path).to_pylist(), default=str, ensure_ascii=False).encode()
        if text.encode() in data:
            found.append(path.relative_to(folder).as_posix())
    return found


@pytest.fixture
def recipe(small_recipe: dict[str, Any], shard_folder: Path, tmp_path: Path) -> Path:
    """Three shards of sixteen pairs; the second has a planted row, and the same row once more."""
    shard = shard_folder / "day-1.jsonl"
    lines = shard.read_text(encoding="utf-8").splitlines(keepends=True)
    planted = json.loads(lines[4])
    planted["chosen"][-1]["content"] = f"Ask {PLANTED}."
    lines[4] = json.dumps(planted) + "\n"
    shard.write_text("".join([*lines, lines[4]]), encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe | {"preferences": {"files": [str(shard_folder)]}}), encoding="utf-8")
    return path


def make_alike(recipe: Path, shard_folder: Path) -> None:
    """Gives the other pairs answers like the planted one and holds half of them out, so that evidence finds a match."""
    for number, shard in enumerate(sorted(shard_folder.iterdir())):
        rows = [json.loads(line) for line in shard.read_text(encoding="utf-8").splitlines()]
        for place, row in enumerate(rows):
            if PLANTED not in row["chosen"][-1]["content"]:
                row["chosen"][-1]["content"] = f"Ask Zyxquo{16 * number + place:02d} of Quimper."
        shard.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    written = yaml.safe_load(recipe.read_text(encoding="utf-8")) | {"held_out_fraction": 0.49}
    recipe.write_text(yaml.safe_dump(written), encoding="utf-8")


def read_now(upstream: Upstream) -> Upstream:
    """The same upstream, with every ref that these tests ask for read: they are read late and then remembered."""
    for name in ("preference_manifest", "policy_checkpoint"):
        upstream.get(name)
    for shard in ("day-0", "day-1", "day-2"):
        upstream.get("preference_shard", shard)
    return upstream


def shards_now(recipe: Path) -> RemainingShards:
    loaded = load_recipe(recipe)
    return Upstream(ArtifactStore().open(), loaded.name).shards(loaded)


def planted_row(upstream: Upstream) -> str:
    folder = upstream.store.fetch(upstream("preference_shard", "day-1"))
    return next(row.row_id for row in read_rows(folder / "rows.parquet") if PLANTED in str(row.chosen))


def test_a_text_is_found_with_the_file_and_line_it_came_from(
    recipe: Path, bring_up_to_date: Callable[..., Upstream]
) -> None:
    made = bring_up_to_date(load_recipe(recipe), only=("base", "shards"))
    (found,) = find_rows(recipe, PLANTED)["rows"]
    where = {"shard": "day-1", "source": "day-1.jsonl", "source_row": 5}
    assert found == {"row_id": planted_row(made), **where}
    assert len(find_rows(recipe, "No.")["rows"]) == 48
    assert find_rows(recipe, "nobody wrote this")["rows"] == []
    with pytest.raises(BadInput, match="text to look for is empty"):
        find_rows(recipe, " ")


def test_a_withdrawn_row_leaves_the_next_model_and_then_the_whole_home(
    recipe: Path, shard_folder: Path, home: Path, bring_up_to_date: Callable[..., Upstream]
) -> None:
    make_alike(recipe, shard_folder)
    launched: list[Any] = bring_up_to_date.launched  # type: ignore[attr-defined]
    before = read_now(bring_up_to_date(load_recipe(recipe)))
    row = planted_row(before)
    held = places(home, PLANTED)
    assert {Path(place).name for place in held} == {"rows.parquet", "quarantine.parquet"}
    assert count_token_ids(before.store, [row]) == 1

    told = withdraw(recipe, [row], [], "asked by mail")
    assert told["rows"] == {row: ["day-1"]}
    with pytest.raises(BadInput, match="the current policy was trained on 1 of the rows: `align run` first"):
        measure_evidence(recipe)
    early = collect([recipe])
    assert "run `align run` first" in early["kept"][0]["why"]
    assert places(home, PLANTED) == held, "what a recipe stands on is not erased under it"
    assert early["token_ids"] == 1, "its token ids are: whoever needs them tokenises the row again"
    assert count_token_ids(before.store, [row]) == 0

    launched.clear()
    after = read_now(bring_up_to_date(load_recipe(recipe)))
    assert launched[0] == ("shards", ["preference_shard"])
    assert after("preference_shard", "day-0") == before("preference_shard", "day-0")
    shard = after.store.commit_of(after("preference_shard", "day-1")).summary
    assert (shard["rows"], shard["withdrawn"], shard["quarantined"]) == (15, 2, 0)
    assert after.store.commit_of(after("reference_logprobs", "day-1")).summary["scored"] == 0
    assert after("preference_manifest").digest != before("preference_manifest").digest
    assert after("policy_checkpoint").digest != before("policy_checkpoint").digest
    launched.clear()
    bring_up_to_date(load_recipe(recipe))
    assert launched == []

    evidence = measure_evidence(recipe)
    assert (evidence["policy"], evidence["after"]["rows"]) == (after("policy_checkpoint").digest, 1)
    assert evidence["policy_before"] == before("policy_checkpoint").digest
    assert evidence["before"]["margin"] > evidence["after"]["margin"], "it was trained on, and is no more"
    assert evidence["after"]["low"] is None and "too few for an interval" in evidence["told"]
    assert evidence_of(after.store, after("policy_checkpoint").digest) == evidence
    assert places(home, PLANTED) == held and count_token_ids(after.store, [row]) == 0, "it leaves nothing to be read"
    assert places(home / "align" / "store" / "evidence", row) == []

    dry = collect([recipe], dry_run=True)
    assert [one["why"] for one in dry["erased"]] == ["rows were withdrawn"]
    assert dry["bytes"] > 0
    assert places(home, PLANTED) == held
    assert collect([recipe])["erased"] == dry["erased"]
    assert places(home, PLANTED) == []
    assert collect([recipe])["erased"] == []
    with pytest.raises(BadInput, match="`align gc` has erased the text"):
        measure_evidence(recipe)
    assert evidence_of(after.store, after("policy_checkpoint").digest) == evidence

    store = after.store
    old = before("preference_shard", "day-1")
    assert store.commit_of(old).summary["rows"] == 16, "its record stands"
    with pytest.raises(ErasedArtifact, match="rows were withdrawn"):
        store.fetch(old)
    bring_up_to_date(load_recipe(recipe))
    assert launched == []

    restore(recipe, [row], [])
    again = bring_up_to_date(load_recipe(recipe))
    assert again("preference_shard", "day-1").digest == old.digest
    assert again("policy_checkpoint") == before("policy_checkpoint")
    assert places(home, PLANTED) != []


def test_evidence_is_refused_where_it_would_say_nothing_of_the_rows(
    recipe: Path, shard_folder: Path, bring_up_to_date: Callable[..., Upstream]
) -> None:
    """Another pair of the prompt is still trained on; or the current policy stands on a withdrawn shard, whose text is
    gone."""
    shard = shard_folder / "day-1.jsonl"
    planted = next(json.loads(line) for line in shard.read_text().splitlines() if PLANTED in line)
    planted["rejected"][-1]["content"] = "Another answer."
    with shard.open("a") as file:
        file.write(json.dumps(planted) + "\n")
    upstream = read_now(bring_up_to_date(load_recipe(recipe)))
    withdraw(recipe, [planted_row(upstream)], [], "asked by mail")
    bring_up_to_date(load_recipe(recipe))
    with pytest.raises(BadInput, match="other pairs of the prompts of all 1 withdrawn rows are trained on"):
        measure_evidence(recipe)
    withdraw(recipe, [], ["day-2"], "asked by mail")
    refused = "the current policy was trained on"
    with pytest.raises(BadInput, match=refused):
        measure_evidence(recipe)
    collect([recipe])
    with pytest.raises(BadInput, match=refused):
        measure_evidence(recipe)


def test_evidence_counts_the_rows_that_the_token_policy_drops_by_now(
    recipe: Path, shard_folder: Path, bring_up_to_date: Callable[..., Upstream]
) -> None:
    """Two withdrawn rows of four are too long since `tokens.max_length` was lowered; then only those two are left."""
    make_alike(recipe, shard_folder)
    shard = shard_folder / "day-1.jsonl"
    rows = [json.loads(line) for line in shard.read_text(encoding="utf-8").splitlines()]
    long = [row for row in rows if not is_held_out(row["chosen"][:1], "chat", 0.49) and PLANTED not in str(row)][:2]
    for row in long:
        row["chosen"][-1]["content"] = "A long answer. " * 10
    shard.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    upstream = read_now(bring_up_to_date(load_recipe(recipe)))
    trained = [
        row
        for row in read_rows(upstream.store.fetch(upstream("preference_shard", "day-1")) / "rows.parquet")
        if not is_held_out(row.prompt, row.form, 0.49)
    ]
    too_long = [row.row_id for row in trained if "A long answer." in str(row.chosen)]
    short = [row.row_id for row in trained if row.row_id not in too_long][:2]
    withdraw(recipe, [*short, *too_long], [], "asked by mail")
    written = yaml.safe_load(recipe.read_text(encoding="utf-8")) | {"tokens": {"max_length": 128}}
    recipe.write_text(yaml.safe_dump(written), encoding="utf-8")
    bring_up_to_date(load_recipe(recipe))
    evidence = measure_evidence(recipe)
    for found in (evidence["after"], evidence["before"]):
        assert (found["rows"] + found["unmatched"], found["dropped"]) == (2, 2)
    told = evidence["told"]
    assert told.count("2 that the recipe's token policy drops") == 2
    assert told.startswith(counted(evidence["after"]["rows"], "withdrawn row") + ", on ")
    restore(recipe, short, [])
    with pytest.raises(
        BadInput, match="field 'tokens': the recipe's token policy drops all 2 withdrawn rows, so nothing"
    ):
        measure_evidence(recipe)


def test_the_rows_that_a_killed_training_mapped_into_memory_go_with_what_was_exported_and_told_to_mlflow(
    recipe: Path,
    home: Path,
    tmp_path: Path,
    bring_up_to_date: Callable[..., Upstream],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}}
    written = yaml.safe_load(recipe.read_text(encoding="utf-8")) | {"gate": passes}
    recipe.write_text(yaml.safe_dump(written), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr("alignment.stages.policy_checkpoint.trainer_arguments", _killed)
        with pytest.raises(Exception, match="killed"):
            bring_up_to_date(load_recipe(recipe))
    store = ArtifactStore().open()
    row = planted_row(Upstream(store, "small"))
    mapped = [place for place in places(Path(store.root), row) if place.endswith(".arrow")]
    assert [Path(place).parts[:2] for place in mapped] == [("work", "policy_checkpoint")]

    withdraw(recipe, [row], [], "asked by mail")
    made = bring_up_to_date(load_recipe(recipe))
    export("small", tmp_path / "exported", print)
    export_ballot("small", "small@sft", "ifeval", tmp_path / "ballot", None, 0, None, 8, "float32", print)
    (left,) = collect([recipe])["leftovers"]
    assert left["why"] == "work that was begun before rows were withdrawn"
    assert made.store.commit_of(made("policy_checkpoint")).summary["resumed_from_step"] in (None, 0)
    assert not [place for place in places(Path(store.root), row) if place.startswith("work/")]
    for folder in (home, tmp_path / "exported", tmp_path / "ballot"):
        assert places(folder, PLANTED) == []


def _killed(*_: object, **__: object) -> None:
    raise RuntimeError("killed")


def test_a_withdrawn_shard_stays_away_until_it_is_restored(
    recipe: Path, home: Path, bring_up_to_date: Callable[..., Upstream]
) -> None:
    import dagster as dg

    before = read_now(bring_up_to_date(load_recipe(recipe)))
    withdraw(recipe, [], ["day-1"], "")
    after = read_now(bring_up_to_date(load_recipe(recipe)))
    manifest = after.store.commit_of(after("preference_manifest"))
    assert sorted(name for name in manifest.inputs if name.startswith("shards.")) == ["shards.day-0", "shards.day-2"]
    with dg.DagsterInstance.get() as instance:
        assert sorted(instance.get_dynamic_partitions("small_shards")) == ["day-0", "day-2"]
    assert [one["why"] for one in collect([recipe])["erased"]] == ["shard day-1 of small was withdrawn"]
    assert places(home, PLANTED) == []
    folder = Path(load_recipe(recipe).preferences.files[0])  # type: ignore[index]
    (folder / "day-1.jsonl").rename(folder / "day-9.jsonl")
    assert list(shards_now(recipe)) == ["day-0", "day-2"], "a new name does not bring it back"
    (folder / "day-9.jsonl").rename(folder / "day-1.jsonl")
    restore(recipe, [], ["day-1"])
    assert bring_up_to_date(load_recipe(recipe))("preference_manifest") == before("preference_manifest")


def test_text_that_another_recipe_uses_is_kept_and_said(
    recipe: Path, tmp_path: Path, home: Path, bring_up_to_date: Callable[..., Upstream]
) -> None:
    phases = ("base", "shards", "reference")
    first = bring_up_to_date(load_recipe(recipe), only=phases)
    other = tmp_path / "other.yaml"
    other.write_text(recipe.read_text(encoding="utf-8").replace("name: small", "name: other"), encoding="utf-8")
    bring_up_to_date(load_recipe(other), only=phases)
    row = planted_row(first)
    assert withdraw(recipe, [row], [], "")["also_in"] == {"other": [row]}
    bring_up_to_date(load_recipe(recipe), only=phases)
    (kept,) = collect([])["kept"]
    assert kept["why"] == (
        "rows were withdrawn, but it is the current shard day-1 of other: withdraw there too, and run it"
    )
    withdraw(other, [row], [], "")
    bring_up_to_date(load_recipe(other), only=phases)
    assert len(collect([])["erased"]) == 1
    assert places(home, PLANTED) == []


def test_a_demonstration_leaves_the_next_sft_checkpoint_and_then_the_whole_home(
    small_recipe: dict[str, Any],
    small_data: dict[str, str],
    tmp_path: Path,
    home: Path,
    bring_up_to_date: Callable[..., Upstream],
) -> None:
    chats = Path(small_data["chats"])
    chats.write_text(chats.read_text(encoding="utf-8").replace("Number 7.", f"Ask {PLANTED}."), encoding="utf-8")
    sft = {"dataset": {"files": [str(chats)]}, "precision": "float32", "max_length": 64, "held_out_fraction": 0}
    path = tmp_path / "taught.yaml"
    path.write_text(yaml.safe_dump(small_recipe | {"sft": sft}), encoding="utf-8")
    before = read_now(bring_up_to_date(load_recipe(path)))
    rows = read_sft_rows(before.store.fetch(before("sft_dataset")) / "train.parquet")
    row = next(row.row_id for row in rows if PLANTED in str(row.completion))
    assert [one["split"] for one in row_lineage(row)["policies"]] == ["sft"]

    told = withdraw(path, [row], [], "")
    assert (told["rows"], told["source"]) == ({row: ["(SFT data)"]}, [str(chats)])
    assert "run `align run` first" in collect([path])["kept"][0]["why"]
    bring_up_to_date.launched.clear()  # type: ignore[attr-defined]
    after = bring_up_to_date(load_recipe(path))
    assert "shards" not in dict(bring_up_to_date.launched)  # type: ignore[attr-defined]
    summary = after.store.commit_of(after("sft_dataset")).summary
    assert (summary["rows"], summary["withdrawn"], summary["source_rows"]) == (39, 1, 40)
    assert after("policy_checkpoint") != before("policy_checkpoint")
    assert places(home, PLANTED) != []
    assert [one["kind"] for one in collect([path])["erased"]] == ["sft_dataset"]
    assert places(home, PLANTED) == []
    assert [one["split"] for one in row_lineage(row)["policies"]] == ["sft"], "of the older one, from its record"
    restore(path, [row], [])


def test_a_manifest_never_takes_rows_that_were_withdrawn_and_not_yet_left_out(
    recipe: Path, bring_up_to_date: Callable[..., Upstream]
) -> None:
    before = read_now(bring_up_to_date(load_recipe(recipe)))
    withdraw(recipe, [planted_row(before)], [], "")
    after = bring_up_to_date(load_recipe(recipe), only=("train",))
    manifest = after.store.commit_of(after("preference_manifest")).summary
    assert manifest["left_out"] == {"day-1": "rows of it were withdrawn, and it was not built without them"}


@pytest.mark.parametrize(
    ("rows", "shards", "told"),
    [
        (["f" * 32], [], "no artifact holds row " + "f" * 32),
        ([], ["day-9"], "no shard day-9 in small; it has day-0, day-1, day-2"),
        ([], [], "give --row-id or --shard"),
    ],
)
def test_what_is_not_known_is_not_withdrawn(
    rows: list[str], shards: list[str], told: str, recipe: Path, bring_up_to_date: Callable[..., Upstream]
) -> None:
    bring_up_to_date(load_recipe(recipe), only=("base", "shards"))
    with pytest.raises(BadInput, match=told):
        withdraw(recipe, rows, shards, "")
    with pytest.raises(BadInput, match=r"give|not withdrawn"):
        restore(recipe, rows, shards)
    from resources.store import ArtifactStore

    store: Store = ArtifactStore().open()
    assert not store.fs.exists(store.path("withdrawn"))
