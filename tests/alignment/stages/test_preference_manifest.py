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
from alignment.data.sources import SuiteItems
from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.logprobs.table import LOGPROBS_SCHEMA
from alignment.recipe import PreferenceSource
from alignment.stages import Context, Request, Result, Stage, execute
from alignment.stages import preference_manifest as manifest
from alignment.stages import preference_shard as shard
from alignment.stages.preference_manifest import ManifestRequest
from alignment.stages.preference_shard import ShardRequest
from alignment.stages.stage import ManifestSummary
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
    """A reference pass that drops the prompts named, finds some unlikely, can turn the order and forget rows."""

    shard: Artifact
    fingerprint: str = "f" * 64
    too_long: tuple[str, ...] = ()
    unlikely: tuple[str, ...] = ()
    turned: bool = False
    forget: int = 0


def score(request: ScoreRequest, context: Context) -> Result:
    rows = read_rows(context.fetch(request.shard) / "rows.parquet")[request.forget :]
    dropped = [{"row_id": row.row_id, "reason": "too long"} for row in rows if row.prompt in request.too_long]
    kept = [
        {
            "row_id": row.row_id,
            "chosen_logp": -12.0 if row.prompt in request.unlikely else -2.0,
            "rejected_logp": -4.0,
            "chosen_tokens": 2,
            "rejected_tokens": 2,
        }
        for row in rows
        if row.prompt not in request.too_long
    ]
    if request.turned:
        kept.reverse()
    schema = pa.schema([("row_id", pa.string()), ("reason", pa.string())])
    pq.write_table(pa.Table.from_pylist(dropped, schema=schema), context.out / "dropped.parquet")
    pq.write_table(pa.Table.from_pylist(kept, schema=LOGPROBS_SCHEMA), context.out / "logprobs.parquet")
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


# What leaves rows out by name.

ITEM = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


def dropped_of(rows: list[Place], kept: Store, shards: dict[str, Artifact]) -> dict[str, str | None]:
    """Prompt to the reason that its row was dropped for."""
    prompts = {
        row.row_id: str(row.prompt) for made in shards.values() for row in read_rows(kept.fetch(made) / "rows.parquet")
    }
    return {prompts[row.row_id]: row.reason for row in rows if row.split == "dropped"}


@pytest.fixture
def items(tmp_path: Path) -> SuiteItems:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"question": ITEM, "answer": "7"}) + "\n", encoding="utf-8")
    return SuiteItems(file=pin_file(str(path)))


@pytest.mark.parametrize("turned", [False, True], ids=["in the shard's order", "in another order"])
def test_each_filter_leaves_its_rows_out_by_name_and_changes_the_data_version(
    tmp_path: Path, store: Store, items: SuiteItems, turned: bool
) -> None:
    long = "a much longer answer than the other one of these pairs is"
    records = [
        *(pair(number) for number in range(9)),
        pair(10, chosen=long),
        pair(11, prompt="Some words and more of them", chosen="what was said there", rejected="nothing was said there"),
        pair(
            12, prompt="some words, and more of them!", chosen="What was said there.", rejected="nothing was said there"
        ),
        pair(13, prompt="please: " + ITEM.replace(" ", "\n").upper(), chosen="seven", rejected="eight"),
        pair(14, prompt="unlike the rest"),
    ]
    shards = {"one": make_shard(store, tmp_path, "one", records)}
    references = {
        "one": make_reference(store, shards["one"], unlikely=("unlike the rest",), turned=turned, too_long=("p3",))
    }
    asked = {"shards": shards, "references": references}
    plain, _, rows = build(store, **asked)
    assert dropped_of(rows, store, shards) == {"p3": "too long"}
    for setting, prompt, reason in (
        ({"max_length_gap": 20}, "p10", "answers differ in length by more than preferences.max_length_gap"),
        ({"near_duplicates": 0.9}, "some words, and more of them!", "near-duplicate"),
        ({"decontaminate": {"gsm8k": items}}, records[-2]["prompt"], "holds an item of gsm8k"),
        (
            {"min_reference_logp": -5.0},
            "unlike the rest",
            "reference log-prob a token below preferences.min_reference_logp",
        ),
    ):
        commit, made, rows = build(store, **asked, **setting)
        assert dropped_of(rows, store, shards) == {"p3": "too long", prompt: reason}
        assert made.dropped == {"too long": 1, reason: 1}
        assert commit.digest != plain.digest
        assert commit.key != plain.key


def test_a_manifest_without_filters_has_the_data_version_of_earlier_ones(tmp_path: Path, store: Store) -> None:
    rows = make_shard(store, tmp_path, "one", [pair(number) for number in range(9)])
    commit, _, _ = build(store, shards={"one": rows})
    entries = [(rows.digest, 9, "", "")]
    assert commit.digest == json_digest({"kind": "paired", "shards": entries, "held_out_fraction": 0.2})


def test_changed_items_are_another_request(tmp_path: Path, store: Store, items: SuiteItems) -> None:
    rows = make_shard(store, tmp_path, "one", [pair(number) for number in range(9)])
    before, _, _ = build(store, shards={"one": rows}, decontaminate={"gsm8k": items})
    (tmp_path / "items.jsonl").write_text(json.dumps({"question": f"{ITEM} more"}) + "\n", encoding="utf-8")
    changed = SuiteItems(file=pin_file(str(tmp_path / "items.jsonl")))
    after, _, _ = build(store, shards={"one": rows}, decontaminate={"gsm8k": changed})
    assert (before.key, before.digest) != (after.key, after.digest)


# What is measured.


def test_contradictions_are_found_across_shards_and_repeated_rows_are_none(tmp_path: Path, store: Store) -> None:
    turned = {"chosen": "r", "rejected": "c"}
    one = make_shard(store, tmp_path, "one", [pair(1), pair(2), pair(3), pair(4)])
    two = make_shard(store, tmp_path, "two", [pair(1), pair(2, **turned), pair(5), pair(5, **turned), pair(6)])
    commit, made, _ = build(store, shards={"one": one, "two": two})
    assert made.counts["dropped"] == 1
    assert commit.summary["contradictory"] == 4
    assert store.commit_of(two).summary["contradictory"] == 2


def test_a_completion_that_is_wanted_and_not_wanted_contradicts_itself(tmp_path: Path, store: Store) -> None:
    records = [{"prompt": "p", "completion": "c", "label": label} for label in (True, False)]
    rows = make_shard(store, tmp_path, "one", [*records, {"prompt": "p", "completion": "d", "label": True}])
    commit, _, _ = build(store, shards={"one": rows})
    assert (commit.summary["contradictory"], commit.summary["pairs"]) == (2, None)


def test_shards_and_references_of_an_earlier_version_are_measured_as_new_ones(tmp_path: Path, store: Store) -> None:
    records = [pair(n, chosen="c" * (n % 5 + 1), rejected="r" * (n % 3 + 1)) for n in range(30)]
    records += [pair(7, chosen=records[7]["rejected"], rejected=records[7]["chosen"])]
    rows = make_shard(store, tmp_path, "one", records)
    reference = make_reference(store, rows)
    now, _, _ = build(store, shards={"one": rows}, references={"one": reference})

    def before(request: ShardRequest, context: Context) -> Result:
        made = shard.run(request, context)
        path = context.out / "rows.parquet"
        table = pq.read_table(path)
        pq.write_table(table.drop_columns(["pair_id", "chosen_length", "rejected_length"]), path)
        kept = {name: made.recorded[name] for name in ("rows", "kind", "digest")}
        return Result(made.digest, kept)

    earlier = Stage(name="preference_shard", code_version=1, request=ShardRequest, run=before)
    old = execute(earlier, ShardRequest(file=pin_file(str(tmp_path / "one.jsonl"))), store).artifact
    assert old.key != rows.key
    then, _, _ = build(store, shards={"one": old}, references={"one": reference}, left_out={"two": "not built"})
    measured = [ManifestSummary.of(commit) for commit in (now, then)]
    assert measured[0].contradictory == measured[1].contradictory == 2
    assert measured[0].pairs == measured[1].pairs
    assert measured[0].reference_logps == measured[1].reference_logps
    assert measured[0].reference_logps is not None
    assert measured[0].reference_logps.chosen["median"] == pytest.approx(-1, abs=0.02)
    assert measured[0].reference_logps.rejected["q05"] == pytest.approx(-2, abs=0.02)


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
