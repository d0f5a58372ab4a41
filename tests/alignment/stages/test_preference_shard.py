"""The shard stage: what it writes adds up, and its digest is of the rows alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from alignment.data.files import pin_file
from alignment.data.forms.table import normalise
from alignment.data.rows import paired_row, read_rows
from alignment.data.withdrawal import SHARDS
from alignment.errors import BadInput
from alignment.recipe import Reading
from alignment.stages import SourceFile, execute
from alignment.stages.preference_shard import STAGE, ShardRequest
from alignment.store import Commit, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def pair(number: int) -> dict[str, str]:
    return {"prompt": f"p{number}", "chosen": "c", "rejected": "r"}


def save(path: Path, records: list[Any]) -> SourceFile:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return pin_file(str(path))


def build(store: Store, **request: Any) -> tuple[Commit, Path]:
    commit = execute(STAGE, ShardRequest(**request), store)
    return commit, store.fetch(commit.artifact)


def test_rows_stand_in_source_order_and_the_rest_in_quarantine(tmp_path: Path, store: Store) -> None:
    file = save(tmp_path / "a.jsonl", [pair(2), {"prompt": "p"}, pair(1), pair(2), "x"])
    commit, folder = build(store, file=file)
    assert [(row.source, row.source_row, row.prompt) for row in read_rows(folder / "rows.parquet")] == [
        ("a.jsonl", 1, "p2"),
        ("a.jsonl", 3, "p1"),
    ]
    assert pq.read_table(folder / "quarantine.parquet").to_pylist() == [
        {"source": "a.jsonl", "source_row": 2, "reason": "missing field chosen", "text": '{"prompt": "p"}'},
        {"source": "a.jsonl", "source_row": 4, "reason": "duplicate of row 1", "text": json.dumps(pair(2))},
        {"source": "a.jsonl", "source_row": 5, "reason": "not an object", "text": '"x"'},
    ]
    assert commit.summary == {
        "rows": 2,
        "quarantined": 3,
        "reasons": {"duplicate": 1, "missing field chosen": 1, "not an object": 1},
        "kind": "paired",
        "source_rows": 5,
        "duplicates": 1,
        "digest": commit.digest,
        "pairs": {"pairs": 2, "of_two_lengths": 0, "chosen_length": 1.0, "rejected_length": 1.0, "scored": 0},
        "contradictory": 0,
        "forms": {"pairs": 2},
    }


def test_the_same_rows_in_another_file_and_order_have_the_same_digest(tmp_path: Path, store: Store) -> None:
    one, _ = build(store, file=save(tmp_path / "a.jsonl", [pair(1), pair(2)]))
    other, _ = build(store, file=save(tmp_path / "b.jsonl", [pair(2), pair(1), {}]))
    changed, _ = build(store, file=save(tmp_path / "c.jsonl", [pair(1), pair(3)]))
    assert one.digest == other.digest != changed.digest
    assert one.key != other.key


def test_parts_hold_all_rows_between_them(tmp_path: Path, store: Store) -> None:
    file = save(tmp_path / "a.jsonl", [pair(number) for number in range(10)])
    rows = [
        row for part in range(3) for row in read_rows(build(store, file=file, part=part, parts=3)[1] / "rows.parquet")
    ]
    assert [row.prompt for row in rows] == [f"p{number}" for number in range(10)]


def test_a_file_without_a_valid_row_is_named_with_its_commonest_reason(tmp_path: Path, store: Store) -> None:
    file = save(tmp_path / "a.jsonl", [{}, {"prompt": "p"}, {"prompt": "q"}])
    with pytest.raises(BadInput, match=r"a\.jsonl: no valid preference row.*missing field chosen \(2 of 3\)"):
        build(store, file=file)
    assert not list(store.commits("preference_shard"))


def test_a_file_that_changed_after_it_was_pinned_builds_nothing(tmp_path: Path, store: Store) -> None:
    file = save(tmp_path / "a.jsonl", [pair(1)])
    save(tmp_path / "a.jsonl", [pair(2)])
    with pytest.raises(BadInput, match="changed since it was pinned"):
        build(store, file=file)


def test_an_embedded_shard_depends_on_its_day_and_the_seed(store: Store) -> None:
    commits = [
        build(store, embedded="micro", part=part, parts=2, seed=seed)[0] for part, seed in ((0, 1), (1, 1), (0, 2))
    ]
    assert len({commit.digest for commit in commits}) == 3
    assert all(commit.summary["kind"] == "paired" and commit.summary["rows"] > 0 for commit in commits)


def test_a_hub_split_is_read_through_datasets_and_cut_into_runs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[Any, ...]] = []

    def load(path: str, name: str | None, *, split: str, revision: str) -> Any:
        asked.append((path, name, split, revision))
        return datasets.Dataset.from_list([pair(number) for number in range(5)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub = {"hub": "team/prefs", "split": "train_prefs", "revision": "a" * 40}
    folders = [build(store, hub=hub, part=part, parts=2)[1] for part in range(2)]
    rows = [row for folder in folders for row in read_rows(folder / "rows.parquet")]
    assert asked == [("team/prefs", None, "train_prefs", "a" * 40)] * 2
    assert [(row.source, row.source_row, row.prompt) for row in rows] == [
        ("team/prefs:train_prefs", number + 1, f"p{number}") for number in range(5)
    ]


def test_a_request_has_one_source_and_a_part_that_exists() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        ShardRequest()
    with pytest.raises(ValueError, match="part 2 of 2"):
        ShardRequest(embedded="micro", part=2, parts=2)


@pytest.mark.real_data
def test_every_row_of_the_real_preference_files_is_accounted_for(store: Store, real_data: Path) -> None:
    source_rows = {}
    for name in ("hh_rlhf/harmless-base.test.jsonl.gz", "demo/dpo_en_demo.json", "demo/kto_en_demo.json"):
        commit, folder = build(store, file=pin_file(str(real_data / name)))
        summary = commit.summary
        rows = pq.read_metadata(folder / "rows.parquet").num_rows
        quarantined = pq.read_metadata(folder / "quarantine.parquet").num_rows
        assert (rows, quarantined) == (summary["rows"], summary["quarantined"])
        assert rows + quarantined == summary["source_rows"] == rows + sum(summary["reasons"].values())
        source_rows[name] = (rows + quarantined, summary["kind"])
    assert list(source_rows.values()) == [(2312, "paired"), (300, "paired"), (300, "unpaired")]


@pytest.mark.real_data
def test_hh_rows_with_an_empty_reply_are_named(store: Store, real_data: Path) -> None:
    import gzip

    path = real_data / "hh_rlhf/harmless-base.test.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    empty = {
        number
        for number, record in enumerate(records, start=1)
        if any(record[side].rstrip().endswith("\n\nAssistant:") for side in ("chosen", "rejected"))
    }
    _, folder = build(store, file=pin_file(str(path)))
    quarantined = pq.read_table(folder / "quarantine.parquet").to_pylist()
    assert empty
    assert {entry["source_row"] for entry in quarantined if entry["reason"].startswith("empty")} == empty
    for row in read_rows(folder / "rows.parquet"):
        record = records[row.source_row - 1]
        assert (row.prompt + row.chosen, row.prompt + row.rejected) == (record["chosen"], record["rejected"])


def test_drawn_rows_are_the_same_in_any_order_and_the_others_are_counted(tmp_path: Path, store: Store) -> None:
    records = [pair(number) for number in range(40)]
    reading = Reading(max_rows=10)

    def drawn(name: str, given: list[Any], seed: int = 0) -> tuple[Commit, list[str]]:
        commit, folder = build(store, file=save(tmp_path / name, given), reading=reading, seed=seed)
        return commit, [row.row_id for row in read_rows(folder / "rows.parquet")]

    commit, ids = drawn("a.jsonl", [*records, pair(3), {}])
    assert len(ids) == commit.summary["rows"] == 10
    assert (commit.summary["not_drawn"], commit.summary["source_rows"], commit.summary["quarantined"]) == (30, 42, 2)
    other, turned = drawn("b.jsonl", records[::-1])
    assert turned == ids[::-1] and other.digest == commit.digest
    assert set(drawn("c.jsonl", records, seed=1)[1]) != set(ids)
    fewer = drawn("d.jsonl", [record for record in records if normalised(record) != ids[0]])[1]
    assert set(ids) - {ids[0]} < set(fewer) and len(fewer) == 10
    all_of_them, _ = build(store, file=save(tmp_path / "e.jsonl", records[:5]), reading=reading)
    assert (all_of_them.summary["rows"], all_of_them.summary["not_drawn"]) == (5, 0)


def normalised(record: Any) -> str:
    row = normalise(record, "f", 1)
    assert not isinstance(row, str)
    return row.row_id


def test_scores_stand_in_the_rows_and_a_shard_of_an_earlier_version_has_none(tmp_path: Path, store: Store) -> None:
    scored = {**pair(1), "score_chosen": 7, "score_rejected": 2.5}
    _, folder = build(store, file=save(tmp_path / "a.jsonl", [scored, pair(2)]))
    path = folder / "rows.parquet"
    assert [(row.chosen_score, row.rejected_score) for row in read_rows(path)] == [(7.0, 2.5), (None, None)]
    table = pq.read_table(path)
    earlier = tmp_path / "earlier.parquet"
    pq.write_table(table.drop_columns(["chosen_score", "rejected_score"]), earlier)
    assert [row.row_id for row in read_rows(earlier)] == [row.row_id for row in read_rows(path)]
    assert read_rows(earlier)[0].chosen_score is None


def test_a_withdrawn_pair_leaves_no_text_of_it_whatever_sets_it_aside(tmp_path: Path, store: Store) -> None:
    """Of three answers, the pair of the first and the last is withdrawn; another pair of them repeats."""
    answers = {"prompt": "q", "responses": ["one", "two", "three"], "scores": [3, 2, 2]}
    reading = Reading(pairing="all", min_score_gap=0.5)
    withdrawn = paired_row("q", "one", "three", "-", 1).row_id
    commit, folder = build(
        store, file=save(tmp_path / "a.jsonl", [answers, answers]), reading=reading, withdrawn=(withdrawn,)
    )
    assert [(row.chosen, row.rejected) for row in read_rows(folder / "rows.parquet")] == [("one", "two")]
    (text,) = pq.read_table(folder / "quarantine.parquet")["text"].to_pylist()
    assert json.loads(text) == {
        "prompt": "q",
        "chosen": "one",
        "rejected": "two",
        "chosen_score": 3.0,
        "rejected_score": 2.0,
    }
    assert SHARDS.held(store, commit.artifact, frozenset({withdrawn})) == set()


def test_no_valid_row_says_what_to_do(tmp_path: Path, store: Store) -> None:
    file = save(tmp_path / "a.jsonl", [{"question": "q", "response_good": "x", "response_bad": "y"}] * 3)
    with pytest.raises(BadInput, match=r"a\.jsonl: no valid .*{prompt: question, chosen: response_good, rejected: "):
        build(store, file=file)


def ranked(number: int) -> dict[str, Any]:
    return {"prompt": f"p{number}", "responses": ["a", "b", "c", "d"], "scores": [4, 3, 2, 1]}


def test_pairs_of_one_record_that_are_split_share_completions_and_none_is_a_duplicate(
    tmp_path: Path, store: Store
) -> None:
    """Of four answers the best is only preferred, the worst never, and the two between are both."""
    file = save(tmp_path / "a.jsonl", [ranked(1), ranked(2), ranked(1)])
    commit, _ = build(store, file=file, reading=Reading(pairing="all"), split_pairs=True)
    assert (commit.summary["rows"], commit.summary["kind"]) == (12, "unpaired")
    assert commit.summary["reasons"] == {"duplicate": 12}, "the third record's"
    first = save(tmp_path / "b.jsonl", [ranked(1)])
    commit, folder = build(store, file=first, reading=Reading(pairing="all"), split_pairs=True)
    assert commit.summary["reasons"] == {}
    seen = sorted((row.completion, row.label) for row in read_rows(folder / "rows.parquet"))
    assert seen == [("a", True), ("b", False), ("b", True), ("c", False), ("c", True), ("d", False)]


@pytest.mark.parametrize(("bound", "kept"), [({"min_score_gap": 3}, 2), ({"min_score_ratio": 4}, 2), ({}, 6)])
def test_pairs_whose_scores_are_too_near_are_set_aside_before_they_are_split(
    bound: dict[str, float], kept: int, tmp_path: Path, store: Store
) -> None:
    file = save(tmp_path / "a.jsonl", [ranked(1)])
    commit, folder = build(store, file=file, reading=Reading(pairing="all", **bound), split_pairs=True)
    assert commit.summary["rows"] == kept
    texts = pq.read_table(folder / "quarantine.parquet")["text"].to_pylist()
    assert len(texts) == (5 if bound else 0), "each of the six pairs but the widest, as a pair"
    assert all({"chosen", "rejected"} <= json.loads(text).keys() for text in texts)
