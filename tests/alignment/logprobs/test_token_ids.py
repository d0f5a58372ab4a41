from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignment.data.rows import paired_row
from alignment.data.tokens import Dropped, Tokenization, TokenSequence
from alignment.logprobs import row_groups, token_ids
from alignment.logprobs.token_ids import Pair, TokenIds, count_token_ids, erase_token_ids
from alignment.recipe import TokenPolicy
from alignment.store import Store
from tests.tiny import byte_tokenizer


def made(count: int, seed: int = 0) -> dict[str, Pair | Dropped]:
    """Pairs of ids of many lengths, and every ninth row dropped."""
    draw = random.Random(seed)

    def ids(fewest: int) -> tuple[int, ...]:
        return tuple(draw.randrange(150_000) for _ in range(draw.randint(fewest, 40)))

    rows: dict[str, Pair | Dropped] = {}
    for number in range(count):
        pair = tuple(TokenSequence(ids(1), ids(1)) for _ in range(2))
        rows[f"{draw.getrandbits(128):032x}"] = Dropped("too long") if number % 9 == 8 else (pair[0], pair[1])
    return rows


def known(ids: TokenIds, row_ids: list[str]) -> list[tuple[str, Pair | Dropped]]:
    return [one for batch in ids.ids(row_ids) for one in batch]


def test_rows_come_back_once_with_the_ids_or_the_reason_they_were_added_with(store_url: str, tmp_path: Path) -> None:
    store, rows = Store(store_url, cache=tmp_path / "copies"), made(700)
    ids = TokenIds(store, "policy")
    ids.add_ids(rows.items())
    ids.add_ids(list(rows.items())[:50])
    again = TokenIds(Store(store_url, cache=tmp_path / "copies"), "policy")
    asked = [*rows, "unknown"]
    random.Random(1).shuffle(asked)
    found = known(again, asked)
    assert dict(found) == rows
    assert len(found) == len(rows)
    assert known(TokenIds(store, "another"), asked) == []


def test_a_batch_is_bounded_whatever_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_groups, "READ_BYTES", 1 << 16)
    monkeypatch.setattr(token_ids, "PART_IDS", 40_000)
    ids, rows = TokenIds(Store(str(tmp_path)), "policy"), made(3000)
    ids.add_ids(iter(rows.items()))
    assert len(ids._parts.parts()) > 4
    batches = list(ids.tables(rows))
    assert max(table.num_rows for table in batches) <= 512
    assert sum(table.num_rows for table in batches) == 3000


def test_only_what_is_not_known_is_tokenised_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenization = Tokenization(byte_tokenizer(bos="put"), TokenPolicy(max_length=40))
    rows = [paired_row(f"{number}: ", "yes" * number, "no", "f", number + 1) for number in range(20)]
    expected = {row.row_id: tokenization.pair(row) for row in rows}
    assert any(isinstance(pair, Dropped) for pair in expected.values())
    pairs, tokenised = Tokenization.pairs, []

    def counted(self: Tokenization, rows: Sequence[Any]) -> list[Any]:
        tokenised.extend(row.row_id for row in rows)
        return list(pairs(self, rows))

    monkeypatch.setattr(Tokenization, "pairs", counted)

    def same(one: Pair | Dropped, other: Pair | Dropped) -> bool:
        return one.reason == other.reason if isinstance(one, Dropped) and isinstance(other, Dropped) else one == other

    ids = TokenIds(Store(str(tmp_path)), "policy")
    for asked, fresh in ((rows[:12], rows[:12]), (rows, rows[12:]), (rows, [])):
        tokenised.clear()
        found = ids.pairs(asked, tokenization)
        assert all(same(found[row.row_id], expected[row.row_id]) for row in asked)
        assert tokenised == [row.row_id for row in fresh]


def test_the_ids_of_a_row_are_erased_under_every_policy(tmp_path: Path) -> None:
    store, rows = Store(str(tmp_path)), made(40)
    for policy in ("one", "other"):
        TokenIds(store, policy).add_ids(rows.items())
    gone = list(rows)[3:5]
    assert count_token_ids(store, [*gone, "unknown"]) == 4
    assert erase_token_ids(store, [*gone, "unknown"]) == 4
    assert count_token_ids(store, gone) == erase_token_ids(store, gone) == 0
    for policy in ("one", "other"):
        assert dict(known(TokenIds(store, policy), list(rows))) == {
            row_id: pair for row_id, pair in rows.items() if row_id not in gone
        }
