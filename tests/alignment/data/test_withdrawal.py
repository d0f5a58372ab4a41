"""A withdrawn row is left out wherever it comes up, and nothing else is made again for it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from alignment.data.files import pin_file
from alignment.data.rows import paired_row, read_rows, unpaired_row
from alignment.data.shards import Part, Shards, shards_of
from alignment.data.withdrawal import (
    RemainingShards,
    Tombstone,
    Withdrawn,
    bury,
    inherit,
    lift,
    read_withdrawn,
    restored_since,
    tombstone,
)
from alignment.errors import BadInput
from alignment.recipe import PreferenceSource
from alignment.stages import execute
from alignment.stages.preference_shard import STAGE, ShardRequest
from alignment.store import Artifact, Commit, Store
from alignment.store.erase import erase


@pytest.fixture
def store(store_url: str, tmp_path: Path) -> Store:
    return Store(store_url, cache=tmp_path / "cache")


def row_id(number: int) -> str:
    return paired_row(f"p{number}", "c", "r", "-", 1).row_id


def asking(path: Path, numbers: list[int]) -> ShardRequest:
    lines = [json.dumps({"prompt": f"p{number}", "chosen": "c", "rejected": "r"}) for number in numbers]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return ShardRequest(file=pin_file(str(path)))


class Listed(Shards):
    """Shards that are given, not listed."""

    def __init__(self, requests: dict[str, ShardRequest]) -> None:
        super().__init__({name: Part(request.part, request.parts, whole=request) for name, request in requests.items()})


def applied(
    store: Store,
    requests: dict[str, ShardRequest],
    current: dict[str, Commit],
    rows: set[str],
    shards: tuple[str, ...] = (),
) -> dict[str, ShardRequest]:
    def artifact(shard: str) -> Artifact | None:
        return current[shard].artifact if shard in current else None

    return dict(
        RemainingShards(Listed(requests), Withdrawn(frozenset(rows), shards=frozenset(shards)), artifact, store)
    )


def test_without_withdrawals_a_request_reads_and_keys_as_it_did_before(tmp_path: Path) -> None:
    request = asking(tmp_path / "a.jsonl", [1])
    assert "withdrawn" not in json.loads(request.model_dump_json())
    assert "withdrawn" not in request.identity()
    withdrawn = request.model_copy(update={"withdrawn": ("x",)})
    assert STAGE.key(withdrawn) != STAGE.key(request)
    assert ShardRequest.model_validate_json(withdrawn.model_dump_json()) == withdrawn


def test_a_withdrawn_row_and_what_repeats_it_are_counted_and_their_text_is_nowhere(
    tmp_path: Path, store: Store
) -> None:
    request = asking(tmp_path / "a.jsonl", [1, 2, 2, 3, 3])
    made = execute(STAGE, request.model_copy(update={"withdrawn": (row_id(2),)}), store)
    folder = store.fetch(made.artifact)
    assert [row.prompt for row in read_rows(folder / "rows.parquet")] == ["p1", "p3"]
    assert [
        json.loads(text)["prompt"] for text in pq.read_table(folder / "quarantine.parquet")["text"].to_pylist()
    ] == ["p3"]
    assert (made.summary["withdrawn"], made.summary["rows"], made.summary["source_rows"]) == (2, 2, 5)


def test_a_shard_of_withdrawn_rows_only_says_so(tmp_path: Path, store: Store) -> None:
    request = asking(tmp_path / "a.jsonl", [1])
    with pytest.raises(BadInput, match="every row of it was withdrawn"):
        execute(STAGE, request.model_copy(update={"withdrawn": (row_id(1),)}), store)


def test_only_shards_that_hold_the_row_are_asked_anew(tmp_path: Path, store: Store) -> None:
    requests = {name: asking(tmp_path / f"{name}.jsonl", numbers) for name, numbers in {"a": [1, 2], "b": [3]}.items()}
    current = {name: execute(STAGE, request, store) for name, request in requests.items()}
    first = applied(store, requests, current, {row_id(1)})
    assert first == {"a": requests["a"].model_copy(update={"withdrawn": (row_id(1),)}), "b": requests["b"]}
    current["a"] = execute(STAGE, first["a"], store)
    assert applied(store, requests, current, {row_id(1)}) == first, "and then it is current"
    second = applied(store, requests, current, {row_id(1), row_id(3)})
    assert second["a"] == first["a"]
    assert second["b"].withdrawn == tuple(sorted([row_id(1), row_id(3)]))


def test_content_that_was_never_read_leaves_out_all_withdrawn_rows(tmp_path: Path, store: Store) -> None:
    old = asking(tmp_path / "a.jsonl", [1])
    current = {"a": execute(STAGE, old, store)}
    requests = {"a": asking(tmp_path / "a.jsonl", [1, 9]), "new": asking(tmp_path / "new.jsonl", [9])}
    for request in applied(store, requests, current, {row_id(9)}).values():
        assert request.withdrawn == (row_id(9),)


def test_a_row_that_stands_in_quarantine_only_is_left_out_too(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "a.jsonl"
    asking(path, [1])
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"prompt": "p2", "completion": "c", "label": True}) + "\n")
    request = ShardRequest(file=pin_file(str(path)))
    made = execute(STAGE, request, store)
    aside = unpaired_row("p2", "c", True, "-", 1).row_id
    assert made.summary["quarantined"] == 1
    asked = applied(store, {"a": request}, {"a": made}, {aside})["a"]
    assert asked.withdrawn == (aside,)
    again = execute(STAGE, asked, store)
    assert (again.summary["quarantined"], again.digest) == (0, made.digest)
    assert applied(store, {"a": request}, {"a": again}, {aside})["a"] == asked
    erase(store, made, ["rows.parquet", "quarantine.parquet"], "rows were withdrawn")
    assert [row.prompt for row in read_rows(store.fetch(made.artifact) / "rows.parquet")] == ["p1"], (
        "what pinned the old shard goes on with the same rows"
    )


def test_a_restored_row_is_asked_for_again(tmp_path: Path, store: Store) -> None:
    request = asking(tmp_path / "a.jsonl", [1, 2])
    both = request.model_copy(update={"withdrawn": tuple(sorted([row_id(1), row_id(2)]))})
    one = request.model_copy(update={"withdrawn": (row_id(1),)})
    current = {"a": execute(STAGE, one, store)}
    assert applied(store, {"a": request}, current, {row_id(1), row_id(2)}) == {"a": both}
    assert applied(store, {"a": request}, current, {row_id(2)}) == {
        "a": request.model_copy(update={"withdrawn": (row_id(2),)})
    }
    assert applied(store, {"a": request}, current, set()) == {"a": request}


def test_a_shard_whose_text_was_erased_is_made_without_the_row(tmp_path: Path, store: Store) -> None:
    request = asking(tmp_path / "a.jsonl", [1, 2])
    made = execute(STAGE, request, store)
    erase(store, made, ["rows.parquet"], "rows were withdrawn")
    asked = applied(store, {"a": request}, {"a": made}, {row_id(1)})
    assert asked["a"].withdrawn == (row_id(1),)


def test_a_withdrawn_shard_is_gone_until_its_tombstone_is_lifted(tmp_path: Path, store: Store) -> None:
    requests = {"a": asking(tmp_path / "a.jsonl", [1]), "b": asking(tmp_path / "b.jsonl", [2])}
    assert list(applied(store, requests, {}, set(), ("a",))) == ["b"]


def listed(store: Store, withdrawn: Withdrawn, folder: Path, parts: int = 1) -> RemainingShards:
    shards = shards_of(PreferenceSource(files=[str(folder)], split_into=parts))
    return RemainingShards(shards, withdrawn, lambda shard: None, store)


def test_what_was_withdrawn_comes_back_under_no_other_name(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    gone = asking(folder / "a.jsonl", [1, 2])
    asking(folder / "b.jsonl", [3, 4])
    withdrawn = Withdrawn(shards=frozenset({"a"}), sources=(("a", gone),))
    assert list(listed(store, withdrawn, folder)) == ["b"]
    (folder / "a.jsonl").rename(folder / "c.jsonl")
    standing = listed(store, withdrawn, folder)
    assert list(standing) == ["b"]
    assert len(standing) == 1
    assert "c" not in standing
    assert standing.withdrawn == {"c": "c holds what was withdrawn as shard a"}
    assert list(listed(store, withdrawn, folder, 2)) == ["b-00001-of-00002", "b-00002-of-00002"]
    asking(folder / "a.jsonl", [7, 8, 9])
    standing = listed(store, withdrawn, folder)
    assert list(standing) == ["b"], "a name stays withdrawn until it is restored"
    assert standing.withdrawn["a"] == "a is the name of a withdrawn shard"


def test_what_was_withdrawn_and_is_written_between_two_looks_is_refused(tmp_path: Path, store: Store) -> None:
    gone = asking(tmp_path / "a.jsonl", [1])
    folder = tmp_path / "data"
    folder.mkdir()
    asking(folder / "b.jsonl", [3, 4])
    standing = listed(store, Withdrawn(sources=(("a", gone),)), folder)
    assert list(standing) == ["b"]
    (tmp_path / "a.jsonl").replace(folder / "b.jsonl")
    with pytest.raises(BadInput, match="holds what was withdrawn as shard a"):
        standing["b"]


def test_tombstones_are_one_object_each_and_hold_no_text(store: Store) -> None:
    bury(store, "r", "rows", [Tombstone(id=row_id(1), at="2026-01-01", reason="asked")])
    source = ShardRequest(embedded="quickstart", part=1, parts=3)
    bury(store, "r", "shards", [Tombstone(id="a/b c", at="2026-01-01", artifacts=["k"], sources=[source])])
    bury(store, "other", "rows", [Tombstone(id=row_id(2), at="2026-01-01")])
    assert read_withdrawn(store, "r") == Withdrawn(
        frozenset({row_id(1)}), shards=frozenset({"a/b c"}), sources=(("a/b c", source),)
    )
    stone = tombstone(store, "r", "shards", "a/b c")
    assert stone is not None
    assert stone.artifacts == ["k"]
    lift(store, "r", "shards", ["a/b c"])
    lift(store, "r", "shards", ["a/b c"])
    assert read_withdrawn(store, "r") == Withdrawn(frozenset({row_id(1)}))


def test_what_a_derived_recipe_inherited_is_lifted_when_it_was_restored_and_it_is_derived_again(store: Store) -> None:
    """Its own withdrawals stay, and so do those that a version inherited which did not mark them."""

    def withdrawn(recipe: str, *rows: str) -> None:
        bury(store, recipe, "rows", [Tombstone(id=row, at="2026-01-01") for row in rows])

    source = ShardRequest(embedded="quickstart", part=1, parts=3)
    withdrawn("base", "mistake", "asked", "asked of both")
    bury(store, "base", "demonstrations", [Tombstone(id="demonstration", at="2026-01-01")])
    bury(store, "base", "shards", [Tombstone(id=name, at="2026-01-01", sources=[source]) for name in ("shard", "day")])
    withdrawn("derived", "own", "as an older version inherited it")
    inherit(store, "base", "derived")
    inherited = tombstone(store, "derived", "rows", "mistake")
    assert inherited == Tombstone(id="mistake", at="2026-01-01", inherited_from="base")
    withdrawn("derived", "asked of both")
    if (day := tombstone(store, "derived", "shards", "day")) is not None:
        bury(store, "derived", "shards", [day])  # a shard's is written from the one that stands
    everything = read_withdrawn(store, "derived")
    assert (len(everything.rows), everything.demonstrations) == (5, {"demonstration"})
    assert everything.shards == {"shard", "day"}
    assert restored_since(store, "derived") == Withdrawn()

    lift(store, "base", "rows", ["mistake", "asked of both"])
    lift(store, "base", "demonstrations", ["demonstration"])
    lift(store, "base", "shards", ["shard", "day"])
    assert read_withdrawn(store, "derived") == everything, "until it is derived again"
    expected = everything.without(restored_since(store, "derived"))
    inherit(store, "base", "derived")
    left = {"own", "as an older version inherited it", "asked", "asked of both"}
    own = Withdrawn(frozenset(left), shards=frozenset({"day"}), sources=(("day", source),))
    assert read_withdrawn(store, "derived") == own == expected
    inherit(store, "other", "derived")
    assert read_withdrawn(store, "derived") == expected, "`asked` is still withdrawn from its base"


def test_a_tombstone_that_is_not_inherited_is_written_as_before(store: Store) -> None:
    """A version that does not know the field reads it."""
    bury(store, "base", "rows", [Tombstone(id="a", at="2026-01-01")])
    inherit(store, "base", "derived")
    files = (store.path("withdrawn", recipe, "rows", "a.json") for recipe in ("base", "derived"))
    base, derived = (json.loads(store.fs.cat_file(file)) for file in files)
    assert set(base) == {"id", "at", "reason", "artifacts", "sources"}
    assert derived == base | {"inherited_from": "base"}
