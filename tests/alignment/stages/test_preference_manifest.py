"""The manifest accounts for every row of every shard, and its digest is of content alone."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.data.files import pin_file
from alignment.data.manifest import Manifest, read_manifest
from alignment.data.mixing import BEYOND
from alignment.data.rows import is_held_out, read_rows
from alignment.data.shards import mixes_of
from alignment.errors import BadInput
from alignment.recipe import PreferenceSource
from alignment.stages import Context, Request, Result, Stage, execute
from alignment.stages import preference_manifest as manifest
from alignment.stages import preference_shard as shard
from alignment.stages.preference_manifest import ManifestRequest
from alignment.stages.preference_shard import ShardRequest
from alignment.store import Artifact, Commit, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def pair(number: int, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"p{number}", "chosen": "c", "rejected": "r", **changes}


def make_shard(store: Store, tmp_path: Path, name: str, records: list[Any]) -> Artifact:
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return execute(shard.STAGE, ShardRequest(file=pin_file(str(path))), store).artifact


class ScoreRequest(Request):
    """A reference pass that drops the prompts named and can forget rows."""

    shard: Artifact
    fingerprint: str = "f" * 64
    too_long: tuple[str, ...] = ()
    forget: int = 0


def score(request: ScoreRequest, context: Context) -> Result:
    rows = read_rows(context.fetch(request.shard) / "rows.parquet")[request.forget :]
    dropped = [{"row_id": row.row_id, "reason": "too long"} for row in rows if row.prompt in request.too_long]
    kept = [{"row_id": row.row_id} for row in rows if row.prompt not in request.too_long]
    schema = pa.schema([("row_id", pa.string()), ("reason", pa.string())])
    pq.write_table(pa.Table.from_pylist(dropped, schema=schema), context.out / "dropped.parquet")
    pq.write_table(pa.Table.from_pylist(kept, schema=schema), context.out / "logprobs.parquet")
    digest = json.dumps([request.shard.digest, request.fingerprint, sorted(request.too_long)])
    return Result(digest, {"fingerprint": request.fingerprint})


SCORE = Stage(name="reference_logprobs", code_version=1, request=ScoreRequest, run=score)


def make_reference(store: Store, rows: Artifact, **options: Any) -> Artifact:
    return execute(SCORE, ScoreRequest(shard=rows, **options), store).artifact


@dataclass(frozen=True)
class Place:
    row_id: str
    shard: str
    split: str
    reason: str | None


def build(store: Store, **request: Any) -> tuple[Commit, Manifest, list[Place]]:
    request.setdefault("held_out_fraction", 0.2)
    commit = execute(manifest.STAGE, ManifestRequest(**request), store)
    folder = store.fetch(commit.artifact)
    return (
        commit,
        read_manifest(folder),
        [Place(**cells) for cells in pq.read_table(folder / "split.parquet").to_pylist()],
    )


def test_every_row_is_trained_held_out_or_dropped_with_a_reason(tmp_path: Path, store: Store) -> None:
    one = make_shard(store, tmp_path, "one", [pair(number) for number in range(40)])
    two = make_shard(store, tmp_path, "two", [pair(number) for number in range(30, 60)])
    references = {
        "one": make_reference(store, one, too_long=["p3", "p35"]),
        "two": make_reference(store, two, too_long=["p35", "p50"]),
    }
    commit, made, rows = build(
        store, shards={"one": one, "two": two}, references=references, left_out={"three": "no reference log-probs"}
    )
    assert len(rows) == made.counts["rows"] == 70
    assert Counter(row.split for row in rows) == {name: made.counts[name] for name in ("train", "held_out", "dropped")}
    assert made.dropped == {"duplicate": 10, "too long": 3}
    assert all((row.reason is None) == (row.split != "dropped") for row in rows)
    kept = [row.row_id for row in rows if row.split != "dropped"]
    assert len(kept) == len(set(kept)) == 57
    assert made.left_out == commit.summary["left_out"] == {"three": "no reference log-probs"}
    assert {entry.name: (entry.rows, entry.shard, entry.reference) for entry in made.shards} == {
        "one": (40, one, references["one"]),
        "two": (30, two, references["two"]),
    }


def test_the_split_is_by_prompt(tmp_path: Path, store: Store) -> None:
    records = [pair(number, chosen=chosen) for number in range(30) for chosen in ("c1", "c2")]
    rows = make_shard(store, tmp_path, "one", records)
    _, _, assigned = build(store, shards={"one": rows}, held_out_fraction=0.3)
    prompts = {row.row_id: row.prompt for row in read_rows(store.fetch(rows) / "rows.parquet")}
    for row in assigned:
        assert (row.split == "held_out") == is_held_out(prompts[row.row_id], "text", 0.3)
    assert {row.split for row in assigned} == {"train", "held_out"}


def test_the_digest_ignores_names_and_order_and_sees_rows_references_and_split(tmp_path: Path, store: Store) -> None:
    one = make_shard(store, tmp_path, "one", [pair(number) for number in range(20)])
    two = make_shard(store, tmp_path, "two", [pair(number) for number in range(10, 30)])
    other = make_shard(store, tmp_path, "other", [pair(number) for number in range(10, 31)])
    scored = {name: make_reference(store, rows) for name, rows in (("one", one), ("two", two), ("other", other))}

    def digest(names: dict[str, str], fraction: float = 0.2, **references: Artifact) -> str:
        artifacts = {"one": one, "two": two, "other": other}
        return build(
            store,
            shards={name: artifacts[which] for name, which in names.items()},
            references={name: references.get(which, scored[which]) for name, which in names.items()},
            held_out_fraction=fraction,
        )[0].digest

    usual = digest({"a": "one", "b": "two"})
    assert digest({"y": "two", "x": "one"}) == usual
    assert digest({"b": "one", "a": "two"}) == usual
    assert digest({"a": "one", "b": "other"}) != usual
    assert digest({"a": "one"}) != usual
    assert digest({"a": "one", "b": "two"}, fraction=0.3) != usual
    assert digest({"a": "one", "b": "two"}, one=make_reference(store, one, too_long=["p1"])) != usual


def test_which_of_two_equal_rows_is_trained_does_not_depend_on_names(tmp_path: Path, store: Store) -> None:
    one = make_shard(store, tmp_path, "one", [pair(number) for number in range(20)])
    two = make_shard(store, tmp_path, "two", [pair(number) for number in range(10, 30)])
    outcomes = []
    for names in (("a", "b"), ("b", "a")):
        shards = dict(zip(names, (one, two), strict=True))
        _, _, rows = build(store, shards=shards)
        outcomes.append([(shards[row.shard].digest, row.row_id, row.split) for row in rows])
    assert outcomes[0] == outcomes[1]


def test_a_reference_that_lacks_rows_of_its_shard_is_refused(tmp_path: Path, store: Store) -> None:
    rows = make_shard(store, tmp_path, "one", [pair(1), pair(2), pair(3)])
    with pytest.raises(BadInput, match="shard one lack 2 of its 3 rows"):
        build(store, shards={"one": rows}, references={"one": make_reference(store, rows, forget=2)})


def test_references_by_different_checkpoints_are_refused(tmp_path: Path, store: Store) -> None:
    shards = {name: make_shard(store, tmp_path, name, [pair(number)]) for number, name in enumerate(("one", "two"))}
    references = {name: make_reference(store, rows, fingerprint=name) for name, rows in shards.items()}
    with pytest.raises(BadInput, match="different references"):
        build(store, shards=shards, references=references)


def test_a_shard_without_its_reference_is_refused_by_name(tmp_path: Path, store: Store) -> None:
    shards = {name: make_shard(store, tmp_path, name, [pair(number)]) for number, name in enumerate(("one", "two"))}
    with pytest.raises(BadInput, match="two"):
        build(store, shards=shards, references={"one": make_reference(store, shards["one"])})


def test_paired_and_unpaired_shards_do_not_go_together(tmp_path: Path, store: Store) -> None:
    paired = make_shard(store, tmp_path, "one", [pair(1)])
    unpaired = make_shard(store, tmp_path, "two", [{"prompt": "p", "completion": "c", "label": True}])
    with pytest.raises(BadInput, match=r"one: paired, two: unpaired"):
        build(store, shards={"one": paired, "two": unpaired})


def test_nothing_left_to_train_on_is_bad_input_with_the_counts(tmp_path: Path, store: Store) -> None:
    rows = make_shard(store, tmp_path, "one", [pair(1), pair(2)])
    reference = make_reference(store, rows, too_long=["p1", "p2"])
    with pytest.raises(BadInput, match=r"no rows left after the token policy \(too long: 2\)"):
        build(store, shards={"one": rows}, references={"one": reference})


def test_no_shard_at_all_says_why_each_was_left_out(store: Store) -> None:
    with pytest.raises(BadInput, match=r"no shard to train on \(one: not built\)"):
        build(store, shards={}, left_out={"one": "not built"})


def test_a_mix_bounds_sources_and_counts_in_the_digest_only_where_there_is_one(tmp_path: Path, store: Store) -> None:
    shards = {
        "old-a": make_shard(store, tmp_path, "a", [pair(number) for number in range(20)]),
        "old-b": make_shard(store, tmp_path, "b", [pair(number) for number in range(20, 40)]),
        "new-c": make_shard(store, tmp_path, "c", [pair(number) for number in range(40, 50)]),
    }
    request = ManifestRequest(shards=shards, held_out_fraction=0.0)
    bare = execute(manifest.STAGE, request, store)
    assert "mix" not in request.identity()
    named = [{"name": "old", "weight": 2, "files": ["x"]}, {"name": "new", "weight": 1, "files": ["y"]}]
    mixes = mixes_of(PreferenceSource.model_validate(named), shards, seed=4)
    assert [len(mix.shards) for mix in mixes] == [2, 1]
    made = execute(manifest.STAGE, request.model_copy(update={"mix": mixes}), store)
    summary = made.summary
    assert (summary["train"], summary["dropped"], summary["rows"]) == (30, 20, 50)
    assert summary["reasons"] == {BEYOND: 20}
    assert made.digest != bare.digest
    bound = mixes_of(PreferenceSource(files=["x"], max_rows=12), shards, seed=4)
    twelve = execute(manifest.STAGE, request.model_copy(update={"mix": bound}), store)
    assert twelve.summary["train"] == 12
    assert mixes_of(PreferenceSource(files=["x"], max_rows=12), {"a": shards["old-a"]}, seed=4) == ()
    assert mixes_of(PreferenceSource(files=["x"]), shards, seed=4) == ()


def test_a_weighted_source_without_shards_takes_no_rows_from_the_others(tmp_path: Path, store: Store) -> None:
    shards = {"old-a": make_shard(store, tmp_path, "a", [pair(number) for number in range(20)])}
    named = [{"name": "old", "weight": 2, "files": ["x"]}, {"name": "new", "weight": 1, "files": ["y"]}]
    mixes = mixes_of(PreferenceSource.model_validate(named), shards, seed=4)
    made, _, _ = build(store, shards=shards, left_out={"new-c": "withdrawn"}, mix=mixes)
    assert made.summary["train"] + made.summary["held_out"] == 20


def test_two_weighted_sources_of_the_same_rows_are_named(tmp_path: Path, store: Store) -> None:
    shard = make_shard(store, tmp_path, "a", [pair(1), pair(2)])
    named = [{"name": "old", "weight": 2, "files": ["x"]}, {"name": "new", "weight": 1, "files": ["x"]}]
    with pytest.raises(BadInput, match="sources old and new hold the same rows"):
        mixes_of(PreferenceSource.model_validate(named), {"old-a": shard, "new-a": shard}, seed=4)
