"""The keys that a method asks for beside a row's own: KTO's partners, and LD-DPO's first tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.data.rows import PreferenceRow, is_held_out, unpaired_row, write_rows
from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.logprobs.reference import ring
from alignment.recipe import TokenPolicy
from alignment.stages import execute
from alignment.stages.reference_logprobs import STAGE, ReferenceRequest
from alignment.store import Artifact, Commit, Store

FRACTION = 0.3
LONGEST = 40
Oracle = Callable[[Path, str, str], tuple[float, int]]


@given(st.sets(st.text("0123456789abcdef", min_size=4, max_size=6), max_size=40), st.text("0123456789abcdef"))
def test_in_a_ring_everyone_is_one_others_partner_and_a_new_row_moves_one(row_ids: set[str], new: str) -> None:
    partners = ring(row_ids)
    if len(row_ids) < 2:
        assert partners == {}
        return
    assert set(partners) == set(partners.values()) == row_ids
    assert all(partner != row for row, partner in partners.items())
    after = ring(row_ids | {new})
    moved = {row for row, partner in after.items() if partners.get(row) != partner}
    assert len(moved) <= 2, "the new row's own partner, and the row before it"


@pytest.fixture
def rows() -> list[PreferenceRow]:
    draw = random.Random(1)

    def text(longest: int) -> str:
        return "".join(draw.choice("abcdefgh ") for _ in range(draw.randint(3, longest)))

    texts = ((text(20), text(30)) for _ in range(200))
    fitting = [(prompt, completion) for prompt, completion in texts if len(prompt + completion) + 2 <= LONGEST][:40]
    made = [unpaired_row(*pair, draw.random() < 0.5, "thumbs.jsonl", n + 1) for n, pair in enumerate(fitting)]
    return [*made, unpaired_row("far too long " * 4, "x", True, "thumbs.jsonl", 41)]


def shard_of(store: Store, rows: Sequence[PreferenceRow]) -> Artifact:
    digest = json_digest([row.row_id for row in rows])  # as another shard's where the order is another
    attempt = store.begin("preference_shard", digest[:40])
    write_rows(attempt.path / "rows.parquet", rows)
    return store.commit(
        attempt,
        digest=digest,
        stage="preference_shard",
        code_version=1,
        inputs={},
        summary={"rows": len(rows), "kind": "unpaired"},
        environment={},
        started_at="",
        seconds=0.0,
    ).artifact


def request(checkpoint: Artifact, shard: Artifact, **given: Any) -> ReferenceRequest:
    settings: dict[str, Any] = {"precision": "float32", "batch_tokens": 400, "held_out_fraction": FRACTION} | given
    return ReferenceRequest(checkpoint=checkpoint, shard=shard, tokens=TokenPolicy(max_length=LONGEST), **settings)


def table(store: Store, commit: Commit) -> dict[str, dict[str, Any]]:
    found = pq.read_table(store.fetch(commit.artifact) / "logprobs.parquet").to_pylist()
    return {row["row_id"]: row for row in found}


def test_a_labelled_rows_values_are_the_oracles_its_partners_behind_its_own_prompt(
    make_model: Any, commit_model: Any, oracle: Oracle, store: Store, rows: list[PreferenceRow]
) -> None:
    folder = make_model()
    commit = execute(STAGE, request(commit_model(store, folder), shard_of(store, rows)), store)
    found, by_id = table(store, commit), {row.row_id: row for row in rows}
    assert commit.summary["dropped"] == {"too long": 1} and len(found) == 40
    sides = {row_id: is_held_out(by_id[row_id].prompt, "text", FRACTION) for row_id in found}
    assert 0 < sum(sides.values()) < 40
    for row_id, cells in found.items():
        side = sorted(other for other in found if sides[other] == sides[row_id])
        assert cells["partner_id"] == side[(side.index(row_id) + 1) % len(side)]
        row, partner = by_id[row_id], by_id[cells["partner_id"]]
        for name, completion in (("completion", row.completion), ("partner", partner.completion)):
            assert isinstance(row.prompt, str) and isinstance(completion, str)
            logp, tokens = oracle(folder, row.prompt, completion)
            room = LONGEST - 1 - len(row.prompt)
            if tokens <= room:
                assert cells[f"{name}_tokens"] == tokens
                assert cells[f"{name}_logp"] == pytest.approx(logp, rel=1e-6)
            else:  # a partner's completion is cut where the row's prompt leaves no room for all of it
                assert name == "partner" and cells["partner_tokens"] == room
                assert logp < cells["partner_logp"] < 0
    assert any(cells["partner_tokens"] < found[cells["partner_id"]]["completion_tokens"] for cells in found.values())


def test_a_new_row_costs_its_own_sequence_and_at_most_two_partners(
    make_model: Any, commit_model: Any, store: Store, rows: list[PreferenceRow], forwarded: Any
) -> None:
    checkpoint = commit_model(store, make_model())
    first = execute(STAGE, request(checkpoint, shard_of(store, rows[:30])), store)
    assert first.summary["scored"] == first.summary["sequences"] == 60
    more = execute(STAGE, request(checkpoint, shard_of(store, rows[:31])), store)
    assert more.summary["sequences"] == 62 and more.summary["scored"] == 3
    before, after = table(store, first), table(store, more)
    moved = {row_id for row_id in before if before[row_id]["partner_id"] != after[row_id]["partner_id"]}
    assert len(moved) == 1 and all(before[row_id] == after[row_id] for row_id in before.keys() - moved)
    again = execute(STAGE, request(checkpoint, shard_of(store, rows[30::-1])), store)
    assert again.summary["scored"] == 0 and table(store, again) == after, "the order of a shard moves no partner"
    assert again.digest == more.digest
    other_split = execute(STAGE, request(checkpoint, shard_of(store, rows[:31]), held_out_fraction=0.0), store)
    assert 0 < other_split.summary["scored"] < 31, "partners of the one ring that were not neighbours in their own"


def test_first_tokens_come_out_of_the_longer_sides_own_forward(
    make_model: Any, commit_model: Any, commit_shard: Any, oracle: Oracle, store: Store, forwarded: Any
) -> None:
    folder = make_model()
    texts = [("one ", "abcd", "ab"), ("two ", "xy", "vwxyz"), ("three ", "pqr", "stu"), ("one ", "abcd", "abc")]
    checkpoint, shard = commit_model(store, folder), commit_shard(store, texts)
    asked = request(checkpoint, shard, held_out_fraction=None, first_tokens=True)
    commit = execute(STAGE, asked, store)
    found = pq.read_table(store.fetch(commit.artifact) / "logprobs.parquet").to_pylist()
    # each of the 7 distinct sequences once, "abcd" too, of which two beginnings are asked for
    assert len(forwarded.lengths) == 7
    for row, (prompt, *sides) in zip(found, texts, strict=True):
        shared = min(map(len, sides)) + 1  # the end counts
        for name, text in zip(("chosen", "rejected"), sides, strict=True):
            whole, tokens = oracle(folder, prompt, text)
            assert row[f"{name}_logp"] == pytest.approx(whole, rel=1e-6) and row[f"{name}_tokens"] == tokens
            assert row[f"{name}_first_tokens"] == shared
            if tokens == shared:
                assert row[f"{name}_first_logp"] == row[f"{name}_logp"]
                assert row[f"{name}_first_key"] == row[f"{name}_key"]
            else:  # the end is not among the first tokens of the longer side
                longer, _ = oracle(folder, prompt, text[:shared])
                end, _ = oracle(folder, prompt + text[:shared], "")
                assert row[f"{name}_first_logp"] == pytest.approx(longer - end, rel=1e-5)
    plain = execute(STAGE, asked.model_copy(update={"first_tokens": False}), store)
    assert plain.summary["scored"] == 0 and STAGE.key(asked) != STAGE.key(plain_request(asked))


def plain_request(asked: ReferenceRequest) -> ReferenceRequest:
    return asked.model_copy(update={"first_tokens": False})


def test_where_the_sides_are_known_already_the_longer_ones_are_forwarded_again(
    make_model: Any, commit_model: Any, commit_shard: Any, store: Store, forwarded: Any
) -> None:
    texts = [("one ", "abcd", "ab"), ("two ", "xy", "vwxyz")]
    checkpoint, shard = commit_model(store, make_model()), commit_shard(store, texts)
    asked = request(checkpoint, shard, held_out_fraction=None, first_tokens=True)
    execute(STAGE, plain_request(asked), store)
    assert len(forwarded.lengths) == 4
    later = execute(STAGE, asked, store)
    assert later.summary["scored"] == 2 and len(forwarded.lengths) == 6
    elsewhere = Store(str(Path(store.root).parent / "elsewhere"))
    at_once = execute(
        STAGE,
        request(
            commit_model(elsewhere, make_model()),
            commit_shard(elsewhere, texts),
            held_out_fraction=None,
            first_tokens=True,
        ),
        elsewhere,
    )
    for one, other in zip(table(store, later).values(), table(elsewhere, at_once).values(), strict=True):
        assert one == {
            name: pytest.approx(value, rel=1e-6) if "logp" in name else value for name, value in other.items()
        }


def test_a_shard_of_the_other_kind_is_refused(
    make_model: Any, commit_model: Any, commit_shard: Any, store: Store, rows: list[PreferenceRow]
) -> None:
    checkpoint = commit_model(store, make_model())
    with pytest.raises(BadInput, match="the shard holds unpaired rows, and the method needs pairs"):
        execute(STAGE, request(checkpoint, shard_of(store, rows), held_out_fraction=None), store)
    with pytest.raises(BadInput, match="the shard holds pairs, and the method needs completions with a label"):
        execute(STAGE, request(checkpoint, commit_shard(store, [("p", "c", "r")])), store)
